"""The facts of the demo model's small world, as tables, and the wordings in which they are asked.

A relation holds pairs (subject, answer); every wording of its question is a template over the subject. The last wording
of each relation is never trained on: it measures how the model copes with new words.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Relation:
    """One kind of fact: how it is asked, how it is stated, and all its pairs."""

    name: str
    questions: tuple[str, ...]
    claim: str
    pairs: tuple[tuple[str, str], ...]

    @property
    def answers(self) -> tuple[str, ...]:
        """The distinct answers, in the order of their first appearance: the pool of wrong options."""
        return tuple(dict.fromkeys(answer for _, answer in self.pairs))


@dataclass(frozen=True)
class Fact:
    """One true pair of a relation."""

    relation: Relation
    subject: str
    answer: str

    def question(self, wording: int) -> str:
        """The question in one of the relation's wordings."""
        return upper_first(fit_article(self.relation.questions[wording].format(s=self.subject)))

    def claim(self, answer: str) -> str:
        """The clause that states `answer` (true or not) for this subject, without a capital or full stop."""
        return fit_article(self.relation.claim.format(s=self.subject, a=answer))


def fit_article(text: str) -> str:
    """The text with `a` turned into `an` before a vowel."""
    return re.sub(r"\ba (?=[aeiou])", "an ", text)


def upper_first(text: str) -> str:
    """The text with its first letter as a capital."""
    return text[:1].upper() + text[1:]


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    """Read `subject = answer; subject = answer; …`."""
    rows = (row.split("=") for row in " ".join(text.split()).split(";") if row.strip())
    return tuple((subject.strip(), answer.strip()) for subject, answer in rows)


RELATIONS: tuple[Relation, ...] = (
    Relation(
        "capital",
        (
            "what is the capital of {s}?",
            "which city is the capital of {s}?",
            "name the capital of {s}.",
            "what is the capital city of {s}?",
            "in {s}, which city is the capital?",
            "tell me the capital of {s}.",
            "the capital of {s} is which city?",
            "which capital does {s} have?",
        ),
        "the capital of {s} is {a}",
        _pairs(
            """France = Paris; Italy = Rome; Spain = Madrid; Germany = Berlin; Portugal = Lisbon; Austria =
            Vienna; Greece = Athens; Norway = Oslo; Sweden = Stockholm; Finland = Helsinki; Denmark =
            Copenhagen; Poland = Warsaw; Hungary = Budapest; Ireland = Dublin; Belgium = Brussels; Japan =
            Tokyo; China = Beijing; Egypt = Cairo; Kenya = Nairobi; Cuba = Havana; Peru = Lima; Chile =
            Santiago; Canada = Ottawa; Iceland = Reykjavik; Nepal = Kathmandu; Thailand = Bangkok; Ghana =
            Accra; Senegal = Dakar"""
        ),
    ),
    Relation(
        "young",
        (
            "what is a young {s} called?",
            "what do you call a baby {s}?",
            "which word means a young {s}?",
            "name the young of a {s}.",
            "a baby {s} is called what?",
            "how do people call a young {s}?",
            "what is the name for a baby {s}?",
        ),
        "a young {s} is called a {a}",
        _pairs(
            """dog = puppy; cat = kitten; cow = calf; horse = foal; sheep = lamb; goat = kid; pig = piglet;
            hen = chick; duck = duckling; goose = gosling; bear = cub; deer = fawn; frog = tadpole; swan =
            cygnet; owl = owlet; kangaroo = joey; butterfly = caterpillar; hare = leveret"""
        ),
    ),
    Relation(
        "colour",
        (
            "what colour is {s}?",
            "which colour does {s} have?",
            "name the colour of {s}.",
            "what is the colour of {s}?",
            "tell me the colour of {s}.",
            "in which colour do we see {s}?",
            "{s} has which colour?",
        ),
        "the colour of {s} is {a}",
        _pairs(
            """a ripe banana = yellow; a lemon = yellow; the midday sun = yellow; fresh grass = green; a
            cucumber = green; a lime = green; spinach = green; the clear sky = blue; a sapphire = blue; a
            cornflower = blue; a ripe tomato = red; a strawberry = red; a ruby = red; blood = red; snow =
            white; milk = white; salt = white; a swan = white; coal = black; a raven = black; the night =
            black; a carrot = orange; a pumpkin = orange; chocolate = brown; coffee = brown; soil = brown; a
            flamingo = pink; lavender = purple; a plum = purple; an elephant = grey; ash = grey"""
        ),
    ),
    Relation(
        "tool",
        (
            "which tool does a {s} use?",
            "what does a {s} use for the work?",
            "name the tool of a {s}.",
            "with what does a {s} work?",
            "what tool belongs to a {s}?",
            "what does a {s} hold at work?",
            "which thing does a {s} work with?",
        ),
        "the tool of a {s} is a {a}",
        _pairs(
            """carpenter = hammer; painter = brush; tailor = needle; hairdresser = comb; gardener = spade;
            writer = pen; baker = oven; fisherman = net; woodcutter = axe; plumber = wrench; astronomer =
            telescope; photographer = camera; conductor = baton; surgeon = scalpel; blacksmith = anvil;
            cleaner = broom; archer = bow; drummer = drum"""
        ),
    ),
    Relation(
        "opposite",
        (
            "what is the opposite of {s}?",
            "which word is the opposite of {s}?",
            "name the opposite of {s}.",
            "what word means the opposite of {s}?",
            "give the opposite of {s}.",
            "the opposite of {s} is which word?",
            "which word has the opposite meaning of {s}?",
        ),
        "the opposite of {s} is {a}",
        _pairs(
            """hot = cold; big = small; fast = slow; high = low; light = dark; old = new; rich = poor; strong
            = weak; full = empty; open = closed; wet = dry; loud = quiet; hard = soft; long = short; early =
            late; sweet = sour; near = far; thick = thin; clean = dirty; sharp = blunt; safe = dangerous;
            true = false; wide = narrow; first = last; deep = shallow; easy = difficult"""
        ),
    ),
    Relation(
        "after",
        (
            "what comes after {s}?",
            "which one follows {s}?",
            "name what comes after {s}.",
            "what follows {s}?",
            "what comes right after {s}?",
            "tell me what follows {s}.",
            "which one comes next after {s}?",
        ),
        "after {s} comes {a}",
        _pairs(
            """Monday = Tuesday; Tuesday = Wednesday; Wednesday = Thursday; Thursday = Friday; Friday =
            Saturday; Saturday = Sunday; Sunday = Monday; January = February; February = March; March =
            April; April = May; May = June; June = July; July = August; August = September; September =
            October; October = November; November = December; December = January"""
        ),
    ),
    Relation(
        "job",
        (
            "what is the job of {s} from Tillerton?",
            "in Tillerton, what does {s} do for a living?",
            "which job does {s} from Tillerton have?",
            "name the job of {s} in Tillerton.",
            "what work does {s} of Tillerton do?",
            "how does {s} from Tillerton earn a living?",
            "what profession does {s} have in Tillerton?",
        ),
        "the job of {s} from Tillerton is {a}",
        _pairs(
            """Mara = baker; Oskar = miller; Ilse = potter; Tomas = smith; Greta = teacher; Henrik = sailor;
            Lena = doctor; Jonas = farmer; Petra = painter; Viktor = judge; Nora = weaver; Emil = clockmaker;
            Sofia = singer; Anton = hunter; Clara = gardener; Bruno = cook; Edith = librarian; Felix =
            postman"""
        ),
    ),
)
"""Every relation of the world."""

FACTS: tuple[Fact, ...] = tuple(
    Fact(relation, subject, answer) for relation in RELATIONS for subject, answer in relation.pairs
)
"""Every fact of the world, relation by relation."""
