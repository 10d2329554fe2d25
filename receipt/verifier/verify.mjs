// The second verifier of bundles, written from the format and not from the first: it shares no code and no table with
// the Go one (package receipt), and a test holds the two to one verdict on every bundle. It runs in browsers and in Node:
//
//   node verify.mjs FILE [--root FINGERPRINT]
//
// Exit codes: 0 verified under the root, 1 refused, 3 consistent under a root that nobody vouched for.
import { ml_dsa65 } from './noble/post-quantum/ml-dsa.js';
import { sha256, sha512 } from './noble/hashes/sha2.js';
import { sha3_256 } from './noble/hashes/sha3.js';
import {
  Refused, Wrong, ascii, bool, bytes, compare, decode, digest, encode, hex, id, int, join, list, money, must, numbered, publicKey, same, struct, text, uint,
  unbase64, utf8, uuid, within, words,
} from './format.mjs';
import { edVerify, presence } from './human.mjs';

// ---- what is encoded ----
const signature = struct([1, 'algorithm', text], [2, 'bytes', bytes], [3, 'key', text]), signed = struct([1, 'body', bytes], [2, 'signature', signature]);
const certificate = struct([1, 'version', uint], [2, 'role', text], [3, 'name', text], [4, 'key', publicKey], [5, 'not before', int]);
const proof = (v) => { const p = struct([1, 'kind', text], [2, 'data', bytes, true])(v); return { ...p, none: !p.kind && !p.data }; };
const scope = struct([1, 'actions', list(text)], [2, 'resources', list(text)], [3, 'spend', money, true]);
const link = struct([1, 'version', uint], [2, 'issuer', id], [3, 'subject', id], [4, 'key', publicKey], [5, 'scope', scope], [6, 'notBefore', int], [7, 'notAfter', int],
  [8, 'depth', uint], [9, 'issuer epoch', uint], [10, 'subject epoch', uint], [11, 'parent', digest, true], [12, 'proof', proof, true], [13, 'nonce', uuid]);
const policy = struct([1, 'id', text], [2, 'digest', digest]);
const consent = struct([1, 'request', digest], [2, 'id', text], [3, 'approver', text], [4, 'channel', text], [5, 'verification', text], [6, 'human', bool],
  [7, 'policy', policy], [8, 'expires', int]);
const record = struct([1, 'id', uuid], [2, 'stamp', struct([1, 'logical', uint], [2, 'physical', int], [3, 'source', text], [4, 'node', text],
  [5, 'uncertainty', int, true])], [3, 'who', id], [4, 'human', id, true], [5, 'chain', digest, true], [6, 'what', text], [7, 'resource', text], [8, 'args', digest, true], [9, 'why', text, true], [10, 'outcome', text],
  [11, 'decision', struct([1, 'kind', text], [2, 'reason', text, true], [3, 'policies', list(policy), true], [4, 'version', digest, true]), true],
  [12, 'consents', list(consent), true], [13, 'usage', struct([1, 'prompt', int], [2, 'completion', int], [3, 'estimated', bool, true]), true], [14, 'sandbox', text, true],
  [15, 'isolation', text, true], [16, 'trace', text, true], [17, 'detail', words, true], [18, 'signature', signature, true], [19, 'signature status', text, true],
  [20, 'personal', list(struct([1, 'subject', uuid], [2, 'commitment', bytes], [3, 'box', bytes])), true]);
const person = struct([1, 'principal', id], [2, 'why', text, true], [3, 'detail', words, true]);
const bundle = struct([1, 'version', uint], [2, 'receipts', list(struct([1, 'leaf', bytes], [2, 'index', int], [3, 'proof', list(bytes)]))], [3, 'links', list(signed)],
  [4, 'checkpoint', bytes], [5, 'keys', struct([1, 'root', publicKey], [2, 'certificates', list(signed)])],
  [6, 'disclosures', list(struct([1, 'index', int], [2, 'subject', uuid], [3, 'key', bytes])), true]);


// ---- signatures: each is for a purpose, which is its context ----
const dsaVerify = (sig, message, key, context) => { try { return ml_dsa65.verify(sig, message, key, { context: ascii(context) }); } catch { return false; } };
const LABEL = 'COMPSIG-MLDSA65-Ed25519-SHA512';
const algorithms = { // the sizes of key and signature, and what verifies
  'id-mldsa65-ed25519-sha512': [1984, 3373, (sig, message, key, purpose) => { // draft-ietf-lamps-pq-composite-sigs
    const m = join(ascii('CompositeAlgorithmSignatures2025' + LABEL), [purpose.length], ascii(purpose), sha512(message));
    return dsaVerify(sig.subarray(0, 3309), m, key.subarray(0, 1952), LABEL) && edVerify(sig.subarray(3309), m, key.subarray(1952));
  }],
  'ml-dsa-65': [1952, 3309, dsaVerify],
  ed25519: [32, 64, (sig, message, key, purpose) => edVerify(sig, sha512(message), key, join(ascii('SigEd25519 no Ed25519 collisions'), [1, purpose.length], ascii(purpose)))],
};
function holds(memo, purpose, message, sig, key) { // memo remembers, by digest, what was computed
  const [keySize, size, check] = Object.hasOwn(algorithms, key.algorithm) ? algorithms[key.algorithm] : [];
  if (!check || sig.algorithm !== key.algorithm || sig.key !== key.id || key.bytes.length !== keySize || sig.bytes.length !== size) return false;
  const name = [ascii(purpose), key.raw, sig.bytes, message].map((x) => hex(sha256(x))).join();
  if (!memo.has(name)) memo.set(name, check(sig.bytes, message, key.bytes, purpose));
  return memo.get(name);
}

// ---- the chain of delegation ----
const covers = (wide, p) => wide.endsWith('*') ? p.startsWith(wide.slice(0, -1)) : wide === p;
const patternWithin = (p, wide) => p.endsWith('*') ? wide.endsWith('*') && p.startsWith(wide.slice(0, -1)) : covers(wide, p);
const allWithin = (patterns, wide) => patterns.every((p) => wide.some((w) => patternWithin(p, w)));
const spendWithin = (spend, above) => !above || (spend && spend.currency === above.currency && spend.nanos <= above.nanos);
function rules(l, above) { // of one link below another; the first has none above
  must(l.version === 2n, 'has an unknown version');
  must(!l.issuer.none && !l.subject.none, 'names nobody');
  must(l.issuer.domain === l.subject.domain && l.issuer.tenant === l.subject.tenant, 'crosses tenants');
  must(l.subject.kind !== 'human', 'delegates to a human');
  must(l.notBefore < l.notAfter, 'is never in force');
  const patterns = [...l.scope.actions, ...l.scope.resources];
  must(l.scope.actions.length <= 256 && l.scope.resources.length <= 256 && patterns.every((p) => ascii(p).length <= 1024), 'has too many or too long patterns');
  must(!l.scope.spend || l.scope.spend.nanos >= 0n, 'allows to spend less than nothing');
  if (!above) {
    must(l.issuer.kind === 'human' && !l.parent, 'does not begin with a human');
    return presence(l);
  }
  must(l.issuer.text === above.subject.text, 'is not issued by the subject of the link above');
  must(!l.proof, 'claims a human\'s proof');
  must(l.notAfter <= above.notAfter, 'outlives the link above');
  must(l.depth < above.depth, 'goes deeper than the link above allows');
  must(allWithin(l.scope.actions, above.scope.actions) && allWithin(l.scope.resources, above.scope.resources) && spendWithin(l.scope.spend, above.scope.spend), 'passes on more than the link above');
  return must(l.parent && same(l.parent, above.digest), 'names another parent');
}
function verifyChain(memo, links, roots) {
  must(links.length <= 16, `a chain of ${links.length} links`);
  links.forEach((l, i) => {
    const of = `link ${i + 1} of the chain, from ${l.issuer.text} to ${l.subject.text}, `;
    must((i ? [links[i - 1].key] : roots).some((k) => holds(memo, 'creto/delegation/v1', l.signed.body, l.signed.signature, k)), of + 'is not signed by its issuer');
    try { rules(l, links[i - 1]); } catch (e) { throw e instanceof Wrong ? new Wrong(of + e.message) : e; }
  });
  return links;
}

// ---- keys, the log's head, inclusion ----
function trustedRoots(memo, { root, certificates }, own, pinned) {
  must(certificates.length <= 128, 'too many certificates');
  const parse = (s) => { try { return certificate(decode(s.body)); } catch { return null; } };
  let left = certificates.slice(own).map((s) => ({ ...s, certificate: parse(s) }));
  const other = `the bundle hangs on the root ${root.fingerprint}, not on the trusted ${pinned}`;
  const trusted = [root, ...left.filter((s) => s.certificate?.role === 'root').map((s) => s.certificate.key)].filter((k) => k.fingerprint === pinned).slice(0, 1);
  must(trusted.length, other);
  while (left.length) {
    const rest = [];
    for (const s of left) {
      const c = s.certificate, by = c && c.version === 1n && c.role === 'root' && trusted.some((k) => holds(memo, 'creto/key/v1', s.body, s.signature, k));
      if (by) trusted.push(c.key); else rest.push(s);
    }
    must(rest.length < left.length, 'a root is certified by none that is trusted');
    left = rest;
  }
  must(trusted.some((k) => k.id === root.id), other);
  return trusted;
}
function logHead(memo, b, own) {
  const certified = (i, role) => {
    const s = b.keys.certificates[i], c = s && holds(memo, 'creto/key/v1', s.body, s.signature, b.keys.root) && certificate(decode(s.body));
    return c && c.version === 1n && c.role === role ? c : must(false, 'the log\'s key is not certified by the root');
  };
  const [composite, plain] = within('key', () => {
    const [first, second] = [certified(0, 'checkpoint'), own > 1 ? certified(1, 'checkpoint-ed25519') : null];
    must(!second || (second.name === first.name && second.key.algorithm === 'ed25519-note' && second.key.bytes.length === 32), 'the log\'s Ed25519 key is not certified by the root');
    return [first, second];
  });
  return within('checkpoint', () => { // C2SP signed-note and tlog-checkpoint
    let lines;
    try { lines = utf8.decode(b.checkpoint).split('\n'); } catch { must(false, 'it is malformed'); }
    const origin = composite.name, [name, size, root, gap, ...sigs] = lines, keys = plain ? [plain, composite] : [composite];
    must(name === origin && /^[^\u0000-\u0020\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000+\ufffd]+$/.test(origin) && /^(0|[1-9]\d*)$/.test(size) && BigInt(size) < 1n << 63n, 'it is malformed');
    must(unbase64(root).length === 32 && gap === '' && sigs.length === keys.length + 1 && sigs.at(-1) === '', 'it is malformed');
    const signedText = ascii(lines.slice(0, 3).join('\n') + '\n');
    keys.forEach((c, i) => {
      must(sigs[i].startsWith(`— ${origin} `), 'it is malformed');
      const blob = unbase64(sigs[i].slice(origin.length + 3)), sig = blob.subarray(4);
      const typed = join(ascii(origin + '\n'), c === plain ? [1] : [255, ...ascii(c.key.algorithm)], c.key.bytes), keyID = (c === plain ? sha256 : sha3_256)(typed).subarray(0, 4);
      const ok = c === plain ? sig.length === 64 && edVerify(sig, signedText, c.key.bytes)
        : holds(memo, 'creto/checkpoint/v1', signedText, { algorithm: c.key.algorithm, key: c.key.id, bytes: sig }, c.key);
      must(same(blob.subarray(0, 4), keyID) && ok, 'its signature does not hold');
    });
    return { origin, size: BigInt(size), root: unbase64(root) };
  });
}
function included(leaf, index, path, { size, root }) { // RFC 6962, section 2.1.1
  const lacks = 'the inclusion proof does not lead to the root', left = [...path];
  const subtree = (from, to) => {
    if (to - from === 1n) return must(left.length === 0, lacks) ?? sha256(join([0], leaf));
    let half = 1n;
    while (half * 2n < to - from) half *= 2n;
    must(left.length > 0, lacks);
    const other = left.pop(), below = index < from + half ? subtree(from, from + half) : subtree(from + half, to);
    return sha256(index < from + half ? join([1], below, other) : join([1], other, below));
  };
  must(path.every((h) => h.length === 32) && index >= 0n && index < size && same(subtree(0n, size), root), lacks);
}

const aead = async (key, sealed, bound) => { // AES-256-GCM; the key is of one box, so the nonce is zero
  const k = await crypto.subtle.importKey('raw', key, 'AES-GCM', false, ['decrypt']);
  return new Uint8Array(await crypto.subtle.decrypt({ name: 'AES-GCM', iv: new Uint8Array(12), additionalData: bound }, k, sealed));
};
const PSEUDONYM = /^subject\.[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/;
async function open(r, keys) { // puts back what the keys open of people; each must open something
  let used = 0;
  for (const [i, box] of (r.personal ?? []).entries()) {
    const d = keys.find((x) => same(x.subject, box.subject));
    if (!d) continue;
    used++;
    must(d.key.length === 32 && same(sha256(join(ascii('creto/audit/commitment/v1\0'), d.key)), box.commitment), 'the key is not the one that the record commits to');
    const plain = await aead(d.key, box.box, join(r.id, box.subject)).catch(() => must(false, 'a personal field does not open'));
    const content = person(decode(plain)), is = content.principal, name = hex(box.subject).replace(/^(.{8})(.{4})(.{4})(.{4})/, 'subject.$1-$2-$3-$4-');
    must(is.kind === 'human', 'a personal field does not open');
    const from = `spiffe://${is.domain}/${is.tenant}/human/${name}`, put = (x) => (x === from ? is.text : x);
    if (r.who.text === from) r.who = is;
    if (r.human?.text === from) r.human = is;
    if (r.resource === `Human::${name}` && is.tenant === r.who.tenant) r.resource = `Human::${is.name}`;
    r.consents?.forEach((c) => { c.approver = put(c.approver); });
    r.detail = new Map([...r.detail ?? []].map(([k, v]) => [k, put(v)]).concat(i === 0 ? [...content.detail ?? []] : []));
    if (i === 0 && content.why) r.why = content.why;
  }
  must(used === keys.length, 'a disclosure is of nobody in it');
}

/**
 * verify checks a whole bundle. root is the fingerprint that is trusted ('' for none, which leaves trusted false); memo
 * remembers signatures from one call to the next. It returns what is proven and throws Refused for what does not hold.
 */
export async function verify(data, root = '', memo = new Map()) {
  const b = within('bundle', () => {
    const parsed = bundle(decode(data));
    must(parsed.version === 1n, `version ${parsed.version}; this verifier knows 1`);
    return parsed;
  });
  let second;
  try { second = certificate(decode(b.keys.certificates[1].body)).role; } catch { /* it is another's, or none */ }
  const own = second === 'checkpoint-ed25519' ? 2 : Math.min(1, b.keys.certificates.length), pinned = root || b.keys.root.fingerprint;
  const roots = within('key', () => trustedRoots(memo, b.keys, own, pinned)), head = logHead(memo, b, own);
  const links = b.links.map((s, i) => within(`link ${i + 1}`, () => ({ ...link(decode(s.body)), signed: s, digest: sha3_256(s.body), used: false })));
  const byDigest = new Map(links.map((l) => [hex(l.digest), l])), chains = new Map();
  for (let l of links) {
    const chain = [];
    for (; l && chain.length <= 16; l = byDigest.get(l.parent && hex(l.parent))) chain.unshift(l);
    chains.set(hex(sha3_256(encode(chain.map((x) => x.digest)))), { chain, verified: false });
  }
  const spent = new Set(), records = [], zero = new Uint8Array(32);
  let last = -1n, keys = b.disclosures ?? [];
  const one = async ({ leaf, index, proof: path }) => {
    included(leaf, index, path, head);
    const r = record(decode(leaf)), of = chains.get(hex(r.chain ?? zero)), rest = keys.findIndex((d, i) => d.index !== index || (i > 0 && compare(keys[i - 1].subject, d.subject) >= 0));
    for (const c of r.consents ?? []) {
      const question = numbered(c.id, r.who.tenant ?? '', r.who.text, r.chain ?? zero, r.what, r.resource, r.args ?? zero, c.policy, c.expires);
      must(same(sha3_256(question), c.request), 'the consent is to another request than what was done');
      must(r.outcome === 'denied' || !spent.has(c.id), 'its consent was spent before');
      if (r.outcome !== 'denied') spent.add(c.id);
    }
    const mine = rest < 0 ? keys : keys.slice(0, rest);
    keys = keys.slice(mine.length);
    await open(r, mine);
    must(index > last, 'out of order');
    last = index;
    records.push({ index, record: r, chain: r.chain ? of?.chain : [] });
    if (!r.chain) return;
    must(of, 'the bundle lacks the links of its chain');
    of.verified ||= !!verifyChain(memo, of.chain, roots);
    const t = r.stamp.physical, second = 1000000000n;
    must(of.chain.every((l) => t >= l.notBefore * second && t < l.notAfter * second), 'a link of its chain was not in force');
    must(of.chain.at(-1).subject.text === r.who.text, 'it names another agent than its chain');
    must(of.chain[0].issuer.text === (r.human?.text ?? '') || (r.human?.kind === 'human' && PSEUDONYM.test(r.human.name)), 'it names another human than its chain');
    for (const l of of.chain) byDigest.get(hex(l.digest)).used = true;
  };
  for (const [i, r] of b.receipts.entries()) await one(r).catch((e) => within(`record ${i + 1} at index ${r.index}`, () => { throw e; }));
  within('bundle', () => must(records.length > 0, 'it holds no record'));
  links.forEach((l, i) => within(`link ${i + 1}`, () => {
    must(byDigest.get(hex(l.digest)).used, 'no record of the bundle needs it');
    must(i === 0 || compare(links[i - 1].digest, l.digest) < 0, 'out of order');
  }));
  within('disclosure', () => must(keys.length === 0, 'one opens nothing of a record, or is out of order'));
  return { trusted: root !== '', root: pinned, origin: head.origin, size: head.size, records };
}

if (globalThis.process?.argv?.[1] && import.meta.url.endsWith(globalThis.process.argv[1].split('/').pop())) {
  const { readFileSync } = await import('node:fs'), [file, flag, root = ''] = process.argv.slice(2);
  try {
    must(file && (flag === undefined || (flag === '--root' && /^sha3-256:[0-9a-f]{64}$/.test(root) && /[1-9a-f]/.test(root.slice(9)))), 'usage: node verify.mjs FILE [--root sha3-256:FINGERPRINT]');
    const v = await verify(new Uint8Array(readFileSync(file)), root);
    for (const { index, record: r, chain } of v.records) console.log(JSON.stringify(`record ${index}  ${r.what} ${r.resource}  ${r.outcome}  ${[chain[0]?.issuer, ...chain.map((l) => l.subject)].map((x) => x?.name).join(' → ')}`));
    console.log(v.trusted ? `verify ${file} OK: ${v.records.length} records of ${v.size} in ${v.origin}, root trusted` : `verify ${file}: consistent, signer not trusted: its root is ${v.root}`);
    process.exitCode = v.trusted ? 0 : 3;
  } catch (e) {
    console.error(`verify ${file} FAILED: ${e instanceof Refused || e instanceof Wrong ? e.message : e.stack}`);
    process.exitCode = 1;
  }
}
