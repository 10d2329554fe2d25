// Serves one model of llama.cpp over HTTP, in the dialect that llama.cpp's own
// server has from OpenAI: chat completions, plain and streamed, embeddings and
// models. It is here because no package ships that server prebuilt, while
// @node-llama-cpp ships llama.cpp's shared library. What answers is llama.cpp:
// its loader, tokenizer, Jinja, sampler and graph; only HTTP is ours.
//
//	node server.mjs DIRECTORY-OF-THE-LIBRARY MODEL.gguf NAME
//
// It writes its port to standard output and ends when standard input does. One
// request is served at a time, as by a server with one slot; GET /slots counts.
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";

const [directory, file, name] = process.argv.slice(2);
const key = process.env.LLAMA_API_KEY;
const maxBody = 1 << 20;
const contextSize = 8192;

const llama = createRequire(import.meta.url)(`${directory}/llama-addon.node`);
llama.setLoggerLogLevel(1);
llama.loadBackends();
llama.loadBackends(directory);
await llama.init();
const model = new llama.AddonModel(file, { addonExports: llama, gpuLayers: 0, useMmap: false });
if (!(await model.init())) throw new Error(`llama.cpp does not load ${file}`);
const chat = new llama.AddonContext(model, { contextSize, batchSize: contextSize, sequences: 1, threads: 1 });
const embedder = new llama.AddonContext(model, { contextSize: 512, batchSize: 512, sequences: 1, threads: 1, embeddings: true });
if (!(await chat.init()) || !(await embedder.init())) throw new Error("llama.cpp makes no context");
const template = new llama.AddonJinjaRenderer(templateOf(readFileSync(file)));
const slots = { active: 0, served: 0, given_up: 0, tokens: 0 };

// templateOf finds a model's chat template, which the binding does not tell: a
// key, the type of a string (8), its length and the string.
function templateOf(gguf) {
	const at = gguf.indexOf("tokenizer.chat_template") + "tokenizer.chat_template".length;
	if (gguf.readUInt32LE(at) !== 8) throw new Error("the chat template is no string");
	return gguf.toString("utf8", at + 12, at + 12 + Number(gguf.readBigUInt64LE(at + 4)));
}

class Refusal extends Error {
	constructor(status, type, message) {
		super(message);
		Object.assign(this, { status, type });
	}
}

// decode evaluates tokens at a position and returns where the logits of the last are.
async function decode(context, tokens, position) {
	context.initBatch(tokens.length);
	const [at] = context.addToBatch(0, position, tokens, Uint32Array.of(tokens.length - 1));
	await context.decodeBatch();
	return at;
}

// generate yields the answer's text as it becomes certain, and returns how it ended.
async function* generate(prompt, request, gone) {
	const sampler = new llama.AddonSampler(model);
	const said = [];
	let text = "", given = 0, finish = "length";
	try {
		sampler.applyConfig({ temperature: request.temperature ?? 0.8, topP: request.top_p ?? 1, seed: request.seed ?? Date.now() % 2 ** 32 });
		const stops = [request.stop ?? []].flat();
		const limit = Math.min(request.max_completion_tokens ?? request.max_tokens ?? Infinity, contextSize - prompt.length);
		let at = await decode(chat, prompt, 0);
		while (!gone() && said.length < limit) {
			const token = await chat.sampleToken(at, sampler);
			if (model.isEogToken(token)) {
				finish = "stop";
				break;
			}
			said.push(token);
			slots.tokens++;
			text = model.detokenize(Uint32Array.from(said));
			const end = Math.min(...stops.map((s) => text.indexOf(s)).filter((i) => i >= 0));
			if (end < Infinity) {
				text = text.slice(0, end);
				finish = "stop";
				break;
			}
			// What may become another character, or a stop, is kept back.
			const keep = Math.max(text.endsWith("\ufffd") ? 4 : 0, ...stops.map((s) => s.length - 1), 0);
			if (text.length - keep > given) {
				yield text.slice(given, text.length - keep);
				given = text.length - keep;
			}
			if (said.length < limit) at = await decode(chat, Uint32Array.of(token), prompt.length + said.length - 1);
		}
		if (text.length > given) yield text.slice(given);
		return { finish, usage: { prompt_tokens: prompt.length, completion_tokens: said.length, total_tokens: prompt.length + said.length } };
	} finally {
		sampler.dispose();
		chat.disposeSequence(0);
	}
}

async function complete(request, response, gone) {
	if (!Array.isArray(request.messages) || request.messages.length === 0) throw new Refusal(400, "invalid_request_error", "'messages' is required");
	const messages = request.messages.map((m) => ({ ...m, content: typeof m.content === "string" ? m.content : (m.content ?? []).map((p) => p.text ?? "").join("") }));
	const prompt = model.tokenize(template.render({ messages, add_generation_prompt: true, bos_token: "<s>", eos_token: "</s>" }), true);
	if (prompt.length >= contextSize) throw new Refusal(400, "exceed_context_size_error", `the request of ${prompt.length} tokens exceeds the context of ${contextSize}`);
	const head = { id: `chatcmpl-${slots.served}`, created: Math.floor(Date.now() / 1000), model: name, system_fingerprint: "llama.cpp" };
	const pieces = generate(prompt, request, gone);
	if (!request.stream) {
		let content = "", step;
		while (!(step = await pieces.next()).done) content += step.value;
		if (gone()) return;
		const message = { role: "assistant", content };
		return reply(response, 200, { ...head, object: "chat.completion", choices: [{ index: 0, message, finish_reason: step.value.finish }], usage: step.value.usage });
	}
	response.writeHead(200, { "Content-Type": "text/event-stream" });
	const say = async (event) => {
		const flows = response.write(`data: ${typeof event === "string" ? event : JSON.stringify(event)}\n\n`);
		if (!flows && !gone()) await new Promise((next) => response.once("drain", next).once("close", next));
	};
	const chunk = (delta, finish_reason) => say({ ...head, object: "chat.completion.chunk", choices: [{ index: 0, delta, finish_reason }] });
	await chunk({ role: "assistant", content: null }, null);
	let step;
	while (!(step = await pieces.next()).done) await chunk({ content: step.value }, null);
	if (gone()) return;
	await chunk({}, step.value.finish);
	if (request.stream_options?.include_usage) await say({ ...head, object: "chat.completion.chunk", choices: [], usage: step.value.usage });
	await say("[DONE]");
	response.end();
}

async function embed(request, response) {
	const data = [];
	let prompt_tokens = 0;
	for (const [index, text] of [request.input].flat().entries()) {
		const tokens = model.tokenize(text, false);
		if (tokens.length === 0 || tokens.length > 512) throw new Refusal(400, "invalid_request_error", `an input of ${tokens.length} tokens`);
		prompt_tokens += tokens.length;
		await decode(embedder, tokens, 0);
		const raw = embedder.getEmbedding(tokens.length);
		embedder.disposeSequence(0);
		const norm = Math.hypot(...raw); // as llama.cpp's server does
		data.push({ object: "embedding", index, embedding: Array.from(raw, (x) => x / norm) });
	}
	reply(response, 200, { object: "list", model: name, data, usage: { prompt_tokens, total_tokens: prompt_tokens } });
}

function reply(response, status, body) {
	response.writeHead(status, { "Content-Type": "application/json; charset=utf-8" }).end(JSON.stringify(body));
}

async function body(request) {
	const parts = [];
	let size = 0;
	for await (const part of request) {
		if ((size += part.length) > maxBody) throw new Refusal(413, "invalid_request_error", "the body is too large");
		parts.push(part);
	}
	try {
		return JSON.parse(Buffer.concat(parts).toString("utf8"));
	} catch {
		throw new Refusal(400, "invalid_request_error", "the body is no JSON");
	}
}

let last = Promise.resolve();
const work = { "/v1/chat/completions": complete, "/v1/embeddings": embed };

async function serve(request, response) {
	if (key && request.headers.authorization !== `Bearer ${key}`) throw new Refusal(401, "authentication_error", "Invalid API Key");
	if (request.method === "GET" && request.url === "/v1/models") return reply(response, 200, { object: "list", data: [{ id: name, object: "model", owned_by: "llamacpp" }] });
	if (request.method === "GET" && request.url === "/slots") return reply(response, 200, slots);
	if (request.method !== "POST" || !work[request.url]) throw new Refusal(404, "not_found_error", "File Not Found");
	const asked = await body(request);
	if (asked.model !== name) throw new Refusal(404, "not_found_error", `there is no model ${JSON.stringify(asked.model)}`);
	const gone = () => response.destroyed;
	const turn = last.then(async () => {
		if (gone()) return;
		slots.active++;
		try {
			await work[request.url](asked, response, gone);
		} finally {
			slots.active--;
			slots[gone() && !response.writableFinished ? "given_up" : "served"]++;
		}
	});
	last = turn.catch(() => {});
	return turn;
}

const server = createServer((request, response) => {
	serve(request, response).catch((e) => {
		if (response.headersSent) return response.destroy();
		const status = e.status ?? 500;
		reply(response, status, { error: { code: status, message: e.message, type: e.type ?? "server_error" } });
	});
});
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
process.stdin.resume().on("end", () => process.exit(0));
