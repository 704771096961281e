// A chat as a tree: a message that was edited keeps its earlier versions, and each version keeps what followed it.
//
// A node is `{ user, answers, next, at }`: `next` are the versions of the message after it, `at` the one that is shown.
// The root is a node without a message. It knows nothing of how messages are shown or answered.

const MOST_NODES = 200;

export const emptyChat = () => ({ next: [], at: 0 });

/** The messages that are shown, from the first to the last. */
export function turnsOf(chat) {
  const turns = [];
  for (let here = chat.next[chat.at]; here; here = here.next[here.at]) turns.push(here);
  return turns;
}

/** The versions of message `number`: a node's `next` and `at`. */
export const versionsOf = (chat, number) => (number === 0 ? chat : turnsOf(chat)[number - 1]);

/** Add a version of message `number` and show it; as the number of messages, `number` goes on with the chat. */
export function write(chat, number, user) {
  const versions = versionsOf(chat, number);
  versions.at = versions.next.push({ user, answers: [], ...emptyChat() }) - 1;
}

/** Every message, shown or not. */
export function everyTurn(chat) {
  return chat.next.flatMap((each) => [each, ...everyTurn(each)]);
}

/** The same tree with `answers(turn.answers)` in place of the answers. */
export function mapAnswers(chat, answers) {
  const next = chat.next.map((each) => ({ user: each.user, answers: answers(each.answers), ...mapAnswers(each, answers) }));
  return { next, at: chat.at };
}

/** Anything -> a chat of at most `MOST_NODES` messages, `mostDeep` after each other; `turn` checks a message. */
export function checkedChat(given, turn, mostDeep) {
  let left = MOST_NODES;
  const versions = (raw, depth) => {
    const next = [];
    for (const each of Array.isArray(raw?.next) && depth < mostDeep ? raw.next : []) {
      if (left-- <= 0) break;
      next.push({ ...turn(each), ...versions(each, depth + 1) });
    }
    return { next, at: Number.isInteger(raw?.at) && next[raw.at] ? raw.at : 0 };
  };
  return versions(given, 0);
}
