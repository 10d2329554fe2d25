// Answers bundles on standard input, each a line: the pinned root, or "-", and the bundle in base64. The answer is a
// line: trusted, consistent, or refused and why. It computes each signature once: thousands of bundles share nearly all.
import { createHash } from 'node:crypto';
import { createInterface } from 'node:readline';
import { Refused, holds, verify } from '../verify.mjs';

const known = new Map();
function remembered(purpose, message, sig, key) {
  const parts = [purpose, message, sig.algorithm, sig.key, sig.bytes, key.algorithm, key.id, key.bytes].map((x) => Buffer.from(x).toString('hex'));
  const name = createHash('sha256').update(parts.join()).digest('hex');
  if (!known.has(name)) known.set(name, holds(purpose, message, sig, key));
  return known.get(name);
}
for await (const line of createInterface({ input: process.stdin })) {
  const [root, data] = line.split(' ');
  let answer;
  try {
    const v = await verify(new Uint8Array(Buffer.from(data, 'base64')), root === '-' ? '' : root, remembered);
    answer = { verdict: v.trusted ? 'trusted' : 'consistent', size: String(v.size), who: v.records.map((r) => `${r.record.who.text} ${r.record.human?.text ?? ''}`) };
  } catch (e) {
    answer = e instanceof Refused ? { verdict: 'refused', why: e.message } : { verdict: 'crashed', why: String(e.stack) };
  }
  process.stdout.write(JSON.stringify(answer) + '\n');
}
