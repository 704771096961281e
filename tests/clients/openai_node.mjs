// What `test_node.py` has the official Node SDK do: one function a test, whose result is printed as JSON.
import OpenAI, { toFile } from "openai";

const [baseURL, name] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const model = "tiller-demo";
const messages = [{ role: "user", content: "Tell me about the sea." }];
const parameters = {
  type: "object",
  properties: { city: { type: "string", enum: ["Paris", "Rome"] }, days: { type: "integer", minimum: 1, maximum: 9 } },
  required: ["city", "days"],
  additionalProperties: false,
};

async function refusal(call) {
  try {
    await call();
  } catch (error) {
    return { kind: error.constructor.name, status: error.status, code: error.code, param: error.param };
  }
  return null;
}

const tests = {
  async models() {
    const ids = [];
    for await (const each of client.models.list()) ids.push(each.id);
    return { ids, one: (await client.models.retrieve(model)).id };
  },

  async chat() {
    const asked = { model, messages, temperature: 0, max_tokens: 24 };
    const whole = await client.chat.completions.create(asked);
    let text = "";
    for await (const chunk of await client.chat.completions.create({ ...asked, stream: true })) {
      text += chunk.choices[0]?.delta?.content ?? "";
    }
    const helper = client.chat.completions.stream({ ...asked, stream_options: { include_usage: true } });
    let deltas = "";
    helper.on("content", (delta) => (deltas += delta));
    const final = await helper.finalChatCompletion();
    const usages = [whole.usage.completion_tokens, final.usage.completion_tokens];
    return { whole: whole.choices[0].message.content, text, deltas, final: final.choices[0].message.content, usages };
  },

  async steering() {
    const asked = { model, messages, temperature: 0, max_tokens: 24 };
    const steering = [{ vector: "cheerful", scale: 1.5 }];
    const plain = await client.chat.completions.create(asked);
    const field = await client.chat.completions.create({ ...asked, steering });
    const named = await client.chat.completions.create({ ...asked, model: `${model}+cheerful:1.5` });
    const texts = [plain, field, named].map((answer) => answer.choices[0].message.content);
    return { texts, echoes: [plain.steering, field.steering, named.steering] };
  },

  async tools() {
    const seen = [];
    const forecast = (given) => {
      seen.push(given);
      return `${given.days} sunny days`;
    };
    const tool = { function: forecast, name: "forecast", parse: JSON.parse, description: "The weather.", parameters };
    const runner = client.chat.completions.runTools(
      { model, messages, tools: [{ type: "function", function: tool }], tool_choice: "required", max_tokens: 200 },
      { maxChatCompletions: 2 },
    );
    const results = [];
    runner.on("functionToolCallResult", (result) => results.push(result));
    await runner.done();
    return { seen, results, roles: runner.messages.map((message) => message.role) };
  },

  async streamed_tools() {
    const stream = client.chat.completions.stream({
      model,
      messages,
      tools: [{ type: "function", function: { name: "forecast", parameters, strict: true } }],
      tool_choice: { type: "function", function: { name: "forecast" } },
    });
    const events = [];
    stream.on("tool_calls.function.arguments.done", (event) => events.push(event.name));
    const final = await stream.finalChatCompletion();
    const calls = final.choices[0].message.tool_calls;
    return { events, calls: calls.map((call) => call.function), reason: final.choices[0].finish_reason };
  },

  async structured() {
    const json_schema = { name: "trip", schema: parameters, strict: true };
    const answer = await client.chat.completions.parse({
      model,
      messages,
      max_tokens: 100,
      response_format: { type: "json_schema", json_schema },
    });
    return JSON.parse(answer.choices[0].message.content);
  },

  async files() {
    const line = `${JSON.stringify({ text: "héé" })}\n`;
    const file = await client.files.create({ file: await toFile(Buffer.from(line), "a.jsonl"), purpose: "fine-tune" });
    const content = await (await client.files.content(file.id)).text();
    const listed = [];
    for await (const each of client.files.list()) listed.push(each.id);
    const deleted = await client.files.delete(file.id);
    return { same: content === line, listed: listed.includes(file.id), bytes: file.bytes, deleted: deleted.deleted };
  },

  async responses() {
    const asked = { model, input: "Tell me about the sea.", temperature: 0, max_output_tokens: 24 };
    const whole = await client.responses.create(asked);
    const stream = client.responses.stream(asked);
    let text = "";
    stream.on("response.output_text.delta", (event) => (text += event.delta));
    const final = await stream.finalResponse();
    return { whole: whole.output_text, text, final: final.output_text };
  },

  async errors() {
    return [
      await refusal(() => client.chat.completions.create({ model: "other", messages })),
      await refusal(() => client.chat.completions.create({ model, messages, steering: [{ vector: "nobody" }] })),
      await refusal(() => client.chat.completions.create({ model, messages, temperature: 9 })),
    ];
  },
};

console.log(JSON.stringify(await tests[name]()));
