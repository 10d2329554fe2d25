// The second verifier of bundles, written from the format and not from the first: it shares no code and no table with
// the Go one (package receipt), and a test holds the two to one verdict on every bundle. It runs in browsers and in Node:
//
//   node verify.mjs FILE [--root FINGERPRINT]
//
// Exit codes: 0 verified under the root, 1 refused, 3 consistent under a root that nobody vouched for.
import { equalBytes } from './noble/curves/utils.js';
import { sha256, sha512 } from './noble/hashes/sha2.js';
import { sha3_256 } from './noble/hashes/sha3.js';
import { bytesToHex, utf8ToBytes } from './noble/hashes/utils.js';
import { ml_dsa65 } from './noble/post-quantum/ml-dsa.js';
import { Refused, attempt, base64, before, decode, encode, join, must, numbered, read, utf8, within } from './format.mjs';
import { edVerify, presence } from './human.mjs';

// ---- signatures: each is for a purpose, which is its context ----
const dsaVerify = (sig, message, key, purpose) => attempt(() => ml_dsa65.verify(sig, message, key, { context: utf8ToBytes(purpose) }));
const LABEL = 'COMPSIG-MLDSA65-Ed25519-SHA512';
const algorithms = new Map(Object.entries({ // the sizes of key and signature, and what verifies
  'id-mldsa65-ed25519-sha512': [1984, 3373, (sig, message, key, purpose) => { // draft-ietf-lamps-pq-composite-sigs
    const both = join(['CompositeAlgorithmSignatures2025', LABEL, [purpose.length], purpose, sha512(message)]);
    return dsaVerify(sig.subarray(0, 3309), both, key.subarray(0, 1952), LABEL) && edVerify(sig.subarray(3309), both, key.subarray(1952));
  }],
  'ml-dsa-65': [1952, 3309, dsaVerify],
  ed25519: [32, 64, (sig, message, key, purpose) => // Ed25519ph (RFC 8032, section 5.1)
    edVerify(sig, sha512(message), key, join(['SigEd25519 no Ed25519 collisions', [1, purpose.length], purpose]))],
}));
function holds(memo, purpose, message, sig, key) { // memo remembers, by digest, what was computed
  const [keySize, size, check] = algorithms.get(key.algorithm) ?? [];
  if (sig.algorithm !== key.algorithm || sig.key !== key.id || key.bytes.length !== keySize || sig.bytes.length !== size) return false;
  const name = bytesToHex(sha256(encode([purpose, key.fingerprint, sig.bytes, message])));
  if (!memo.has(name)) memo.set(name, check(sig.bytes, message, key.bytes, purpose));
  return memo.get(name);
}

// ---- the chain of delegation ----
const covers = (wide, p) => wide === p || (wide.endsWith('*') && p.startsWith(wide.slice(0, -1)));
const allWithin = (patterns, above) => patterns.every((p) => above.some((wide) => covers(wide, p)));
function rules(l, above) { // of one link below another; the first has none above
  const { actions, resources, spend } = l.scope;
  must(l.issuer.domain && l.issuer.domain === l.subject.domain && l.issuer.tenant === l.subject.tenant, 'names nobody, or crosses tenants');
  must(l.subject.kind !== 'human', 'delegates to a human');
  must(l.notBefore < l.notAfter, 'is never in force');
  must([actions, resources].every((p) => p.length <= 256) && [...actions, ...resources].every((p) => utf8ToBytes(p).length <= 1024),
    'has too many or too long patterns');
  if (!above) {
    must(l.issuer.kind === 'human' && !l.parent, 'does not begin with a human');
    return presence(l);
  }
  must(l.issuer.text === above.subject.text, 'is not issued by the subject of the link above');
  must(!l.proof, 'claims a human\'s proof');
  must(l.notAfter <= above.notAfter && l.depth < above.depth, 'outlives the link above, or goes deeper than it allows');
  const most = above.scope.spend, affordable = !most || (spend && spend.currency === most.currency && spend.nanos <= most.nanos);
  return must(affordable && allWithin(actions, above.scope.actions) && allWithin(resources, above.scope.resources),
    'passes on more than the link above');
}
async function verifyChain(memo, chain, roots) {
  must(chain.length <= 16, 'its chain has too many links');
  for (const [i, l] of chain.entries()) {
    await within(`link ${i + 1} of the chain, from ${l.issuer.text} to ${l.subject.text}`, () => {
      const issuers = i ? [chain[i - 1].key] : roots;
      must(issuers.some((k) => holds(memo, 'creto/delegation/v1', l.signed.body, l.signed.signature, k)), 'is not signed by its issuer');
      rules(l, chain[i - 1]);
    });
  }
}

// ---- keys, the log's head, inclusion ----
function trustedRoots(memo, { root, certificates }, own, pinned) {
  must(certificates.length <= 128, 'too many certificates');
  const left = certificates.slice(own).map((s) => ({ ...s, ...attempt(() => read('certificate', decode(s.body))) }));
  const trusted = [root, ...left.filter((c) => c.role === 'root').map((c) => c.key)].filter((k) => k.fingerprint === pinned).slice(0, 1);
  while (left.length > 0 && trusted.length > 0) {
    const next = left.findIndex((c) => c.role === 'root' && trusted.some((k) => holds(memo, 'creto/key/v1', c.body, c.signature, k)));
    must(next >= 0, 'a root is certified by none that is trusted');
    trusted.push(left.splice(next, 1)[0].key);
  }
  must(trusted.some((k) => k.id === root.id), `the bundle hangs on the root ${root.fingerprint}, not on the trusted ${pinned}`);
  return trusted;
}
function logKeys(memo, { root, certificates }, own) {
  const [composite, plain] = ['checkpoint', 'checkpoint-ed25519'].slice(0, own || 1).map((role, i) => {
    const s = certificates[i], c = s && holds(memo, 'creto/key/v1', s.body, s.signature, root) && read('certificate', decode(s.body));
    must(c && c.role === role && (i === 0 || (c.key.algorithm === 'ed25519-note' && c.key.bytes.length === 32)), 'the log\'s key is not certified by the root');
    return c;
  });
  must(!plain || plain.name === composite.name, 'the log\'s two keys are of two logs');
  return plain ? [plain, composite] : [composite];
}
function unbase64(s) { // in its one form
  const b = Uint8Array.from(attempt(() => atob(s)) ?? '', (c) => c.charCodeAt(0));
  must(base64(b) === s, 'it is malformed');
  return b;
}
const ORIGIN = /^[^\u0000-\u0020\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000+\ufffd]+$/; // C2SP signed-note
function logHead(memo, note, keys) { // C2SP tlog-checkpoint
  const origin = keys[0].name, [name, size, root, gap, ...sigs] = utf8(note).split('\n'), signed = `${name}\n${size}\n${root}\n`;
  must(name === origin && ORIGIN.test(origin) && /^(0|[1-9]\d*)$/.test(size) && BigInt(size) < 1n << 63n, 'it is malformed');
  must(unbase64(root).length === 32 && gap === '' && sigs.length === keys.length + 1 && sigs.at(-1) === '', 'it is malformed');
  for (const [i, { key }] of keys.entries()) {
    const plain = key.algorithm === 'ed25519-note', typed = join([origin, '\n', plain ? [1] : [255], plain ? '' : key.algorithm, key.bytes]);
    must(sigs[i].startsWith(`— ${origin} `), 'it is malformed');
    const blob = unbase64(sigs[i].slice(origin.length + 3)), bytes = blob.subarray(4);
    must(equalBytes(blob.subarray(0, 4), (plain ? sha256 : sha3_256)(typed).subarray(0, 4)), 'it is signed by another key');
    must(plain ? bytes.length === 64 && edVerify(bytes, utf8ToBytes(signed), key.bytes)
      : holds(memo, 'creto/checkpoint/v1', utf8ToBytes(signed), { algorithm: key.algorithm, key: key.id, bytes }, key), 'its signature is wrong');
  }
  return { origin, size: BigInt(size), root: unbase64(root) };
}
function treeRoot(leaf, index, size, path) { // RFC 6962, section 2.1.1
  if (size === 1n) return must(path.length === 0, 'its inclusion proof is too long') ?? sha256(join([[0], leaf]));
  must(path.at(-1)?.length === 32, 'its inclusion proof is too short');
  let half = 1n;
  while (half * 2n < size) half *= 2n;
  return index < half ? sha256(join([[1], treeRoot(leaf, index, half, path.slice(0, -1)), path.at(-1)]))
    : sha256(join([[1], path.at(-1), treeRoot(leaf, index - half, size - half, path.slice(0, -1))]));
}

const PSEUDONYM = /^subject\.[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/;
async function open(r, keys) { // puts back what the keys open of people; each must open something
  let used = 0;
  for (const [i, box] of (r.personal ?? []).entries()) {
    const d = keys.find((x) => equalBytes(x.subject, box.subject));
    if (!d) continue;
    used++;
    must(d.key.length === 32 && equalBytes(sha256(join(['creto/audit/commitment/v1\0', d.key])), box.commitment), 'the key is not the one that the record commits to');
    const key = await crypto.subtle.importKey('raw', d.key, 'AES-GCM', false, ['decrypt']);
    const how = { name: 'AES-GCM', iv: new Uint8Array(12), additionalData: join([r.id, box.subject]) }; // the key is of one box
    const plain = await crypto.subtle.decrypt(how, key, box.box).catch(() => must(false, 'a personal field does not open'));
    const content = read('person', decode(new Uint8Array(plain))), is = content.principal;
    must(is.kind === 'human', 'a personal field is of no human');
    const name = bytesToHex(box.subject).replace(/^(.{8})(.{4})(.{4})(.{4})/, 'subject.$1-$2-$3-$4-');
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
  const b = await within('bundle', () => read('bundle', decode(data)));
  const second = attempt(() => read('certificate', decode(b.keys.certificates[1].body)).role);
  const own = second === 'checkpoint-ed25519' ? 2 : 1, pinned = root || b.keys.root.fingerprint; // the log's own certificates come first
  const roots = await within('key', () => trustedRoots(memo, b.keys, own, pinned));
  const keys = await within('key', () => logKeys(memo, b.keys, own));
  const head = await within('checkpoint', () => logHead(memo, b.checkpoint, keys));
  const links = [], byDigest = new Map(), chains = new Map(), verified = new Set();
  for (const [i, signed] of b.links.entries()) {
    await within(`link ${i + 1}`, () => {
      const map = decode(signed.body), l = { ...read('link', map), map, signed, digest: sha3_256(signed.body) };
      must(i === 0 || before(links[i - 1].digest, l.digest), 'out of order');
      links.push(l);
      byDigest.set(bytesToHex(l.digest), l);
    });
  }
  for (const last of links) {
    const chain = [];
    for (let l = last; l && chain.length <= 16; l = l.parent && byDigest.get(bytesToHex(l.parent))) chain.unshift(l);
    chains.set(bytesToHex(sha3_256(encode(chain.map((l) => l.digest)))), chain);
  }
  const spent = new Set(), records = [], zero = new Uint8Array(32), disclosures = b.disclosures ?? [];
  const proven = async ({ leaf, index, proof }) => {
    must(index >= 0n && index < head.size && equalBytes(treeRoot(leaf, index, head.size, proof), head.root), 'it is not in the log');
    must(records.length === 0 || records.at(-1).index < index, 'out of order');
    const r = read('record', decode(leaf)), chain = r.chain ? chains.get(bytesToHex(r.chain)) : [];
    for (const c of r.consents ?? []) {
      const question = numbered(c.id, r.who.tenant ?? '', r.who.text, r.chain ?? zero, r.what, r.resource, r.args ?? zero,
        numbered(c.policy.id, c.policy.digest), c.expires);
      must(equalBytes(sha3_256(encode(question)), c.request), 'the consent is to another request than what was done');
      must(r.outcome === 'denied' || !spent.has(c.id), 'its consent was spent before');
      if (r.outcome !== 'denied') spent.add(c.id);
    }
    const mine = [];
    while (disclosures[0]?.index === index) mine.push(disclosures.shift());
    must(mine.every((d, i) => i === 0 || before(mine[i - 1].subject, d.subject)), 'its disclosures are out of order');
    await open(r, mine);
    records.push({ index, record: r, chain });
    if (!r.chain) return;
    must(chain, 'the bundle lacks the links of its chain');
    if (!verified.has(chain)) await verifyChain(memo, chain, roots);
    verified.add(chain);
    const t = r.stamp.physical, second = 1000000000n;
    must(chain.every((l) => t >= l.notBefore * second && t < l.notAfter * second), 'a link of its chain was not in force');
    must(chain.at(-1).subject.text === r.who.text, 'it names another agent than its chain');
    must(chain[0].issuer.text === (r.human?.text ?? '') || (r.human?.kind === 'human' && PSEUDONYM.test(r.human.name)), 'it names another human than its chain');
  };
  for (const [i, r] of b.receipts.entries()) await within(`record ${i + 1} at index ${r.index}`, () => proven(r));
  await within('bundle', () => must(records.length > 0, 'it holds no record'));
  const needed = new Set([...verified].flat());
  for (const [i, l] of links.entries()) await within(`link ${i + 1}`, () => must(needed.has(l), 'no record of the bundle needs it'));
  await within('disclosure', () => must(disclosures.length === 0, 'one opens nothing of a record, or is out of order'));
  return { trusted: root !== '', root: pinned, origin: head.origin, size: head.size, records };
}

if (globalThis.process?.argv?.[1] && import.meta.url.endsWith(globalThis.process.argv[1].split('/').pop())) {
  const { readFileSync } = await import('node:fs'), [file, flag, root = ''] = process.argv.slice(2);
  try {
    const usable = file && (flag === undefined || (flag === '--root' && /^sha3-256:[0-9a-f]{64}$/.test(root) && /[1-9a-f]/.test(root.slice(9))));
    must(usable, 'usage: node verify.mjs FILE [--root sha3-256:FINGERPRINT]');
    const v = await verify(new Uint8Array(readFileSync(file)), root);
    for (const { index, record: r, chain } of v.records) {
      const people = [chain[0]?.issuer, ...chain.map((l) => l.subject)].map((x) => x?.name).join(' → ');
      console.log(JSON.stringify(`record ${index}  ${r.what} ${r.resource}  ${r.outcome}  ${people}`));
    }
    console.log(v.trusted ? `verify ${file} OK: ${v.records.length} records of ${v.size} in ${v.origin}, root trusted`
      : `verify ${file}: consistent, signer not trusted: its root is ${v.root}`);
    process.exitCode = v.trusted ? 0 : 3;
  } catch (e) {
    console.error(`verify ${file} FAILED: ${e instanceof Refused ? e.message : e.stack}`);
    process.exitCode = 1;
  }
}
