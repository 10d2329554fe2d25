// Answers bundles on standard input, each a line: the pinned root, or "-", and the bundle in base64. The answer is a
// line: trusted, consistent, or refused and why.
import { createInterface } from 'node:readline';
import { Refused } from '../format.mjs';
import { verify } from '../verify.mjs';

const memo = new Map();
for await (const line of createInterface({ input: process.stdin })) {
  const [root, data] = line.split(' ');
  let answer;
  try {
    const v = await verify(new Uint8Array(Buffer.from(data, 'base64')), root === '-' ? '' : root, memo);
    answer = { verdict: v.trusted ? 'trusted' : 'consistent', size: String(v.size), who: v.records.map((r) => `${r.record.who.text} ${r.record.human?.text ?? ''}`) };
  } catch (e) {
    answer = e instanceof Refused ? { verdict: 'refused', why: e.message } : { verdict: 'crashed', why: String(e.stack) };
  }
  process.stdout.write(JSON.stringify(answer) + '\n');
}
