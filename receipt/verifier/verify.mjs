// The second verifier of bundles, written from the format and not from the first: it shares no code and no table with the Go one
// (package receipt), and a test holds the two to one verdict on every bundle. It runs in browsers and in Node, as a program:
// node verify.mjs FILE [--root FINGERPRINT]
// Exit codes: 0 verified under the root, 1 refused, 3 consistent under a root that nobody vouched for.
import { pow } from './noble/curves/abstract/modular.js';
import { ed25519 } from './noble/curves/ed25519.js';
import { p256 } from './noble/curves/nist.js';
import { bytesToHex, bytesToNumberBE, bytesToNumberLE, equalBytes } from './noble/curves/utils.js';
import { sha256, sha512 } from './noble/hashes/sha2.js';
import { sha3_256 } from './noble/hashes/sha3.js';
import { ml_dsa65 } from './noble/post-quantum/ml-dsa.js';
import { Refused, ascending, attempt, decode, encode, join, must, read, utf8, within } from './format.mjs';

// ---- signatures of nodes and agents: each is for a purpose, which is its context ----
const { BASE, Fn } = ed25519.Point, LABEL = 'COMPSIG-MLDSA65-Ed25519-SHA512';
function edVerify(sig, message, key, prefix = '') { // Ed25519 (RFC 8032), without the cofactor; its variants sign a prefix in front
  const R = sig.subarray(0, 32), s = bytesToNumberLE(sig.subarray(32)), k = bytesToNumberLE(sha512(join([prefix, R, key, message])));
  const expected = () => BASE.multiplyUnsafe(s).subtract(ed25519.Point.fromBytes(key, true).multiplyUnsafe(k % Fn.ORDER)).toBytes();
  return s < Fn.ORDER && attempt(() => equalBytes(expected(), R));
}
const dsaVerify = (sig, message, key, purpose) => attempt(() => ml_dsa65.verify(sig, message, key, { context: join([purpose]) }));
function compositeVerify(sig, message, key, purpose) { // draft-ietf-lamps-pq-composite-sigs
  const both = join(['CompositeAlgorithmSignatures2025', LABEL, [purpose.length], purpose, sha512(message)]);
  return dsaVerify(sig.subarray(0, 3309), both, key.subarray(0, 1952), LABEL) && edVerify(sig.subarray(3309), both, key.subarray(1952));
}
const ed25519ph = (sig, message, key, purpose) =>
  edVerify(sig, sha512(message), key, join(['SigEd25519 no Ed25519 collisions', [1, purpose.length], purpose]));
const algorithms = new Map([ // the sizes of key and signature, and what verifies
  ['id-mldsa65-ed25519-sha512', [1984, 3373, compositeVerify]], ['ml-dsa-65', [1952, 3309, dsaVerify]], ['ed25519', [32, 64, ed25519ph]],
]);
/** holds says whether the signature is one by the key for the purpose. */
export function holds(purpose, message, sig, key) {
  const [keySize, size, check] = algorithms.get(key.algorithm) ?? [], fits = key.bytes.length === keySize && sig.bytes.length === size;
  return fits && sig.algorithm === key.algorithm && sig.key === key.id && check(sig.bytes, message, key.bytes, purpose);
}

// ---- how the human of a chain was known: a passkey (WebAuthn level 3), an identity provider, or who held the data directory ----
function rsaVerify(sig, message, { n, e }) { // RSASSA-PKCS1-v1_5 with SHA-256 (RFC 8017, section 8.2.2)
  const [s, N, E] = [sig, n, e].map(bytesToNumberBE), size = Math.ceil(N.toString(16).length / 2);
  if (N < 1n << 2047n || N >= 1n << 4096n || N % 2n === 0n || e.length > 3 || E < 2n || E % 2n === 0n) return false;
  const block = `0x0001${'ff'.repeat(size - 54)}003031300d060960864801650304020105000420${bytesToHex(sha256(message))}`;
  return sig.length === size && s < N && pow(s, E, N) === BigInt(block);
}
function passkeyVerify(sig, message, cose) {
  const [ec, ed, rsa] = ['es256', 'eddsa', 'rs256'].map((form) => attempt(() => read(form, cose)));
  if (ec) return attempt(() => p256.verify(sig, message, join([[4], ec.x, ec.y]), { lowS: false, format: 'der' }));
  return ed ? sig.length === 64 && edVerify(sig, message, ed.x) : rsa && rsaVerify(sig, message, rsa);
}
function clientData(data) { // WebAuthn level 3, section 5.8.1; no name may be there twice
  const source = utf8(data), value = attempt(() => JSON.parse(source)), names = [];
  must(value && source.trimStart()[0] === '{' && equalBytes(join([source]), data), 'its client data is malformed');
  let depth = 0;
  for (const [token, colon] of source.matchAll(/"(?:[^"\\]|\\.)*"(?=\s*(:?))|[{}[\]]/g)) { // a name is text before a colon
    if (colon && depth === 1) names.push(JSON.parse(token).toWellFormed());
    depth += '{['.includes(token) - ']}'.includes(token);
  }
  return must(new Set(names).size === names.length && value, 'its client data has a name twice');
}
const bounded = (limit, ...parts) => parts.every((x) => x.length > 0 && join([x]).length <= limit);
function authenticated(e, challenge, l) { // OpenID Connect Core 1.0, as the node saw it
  must(e.issuer.length <= 512 && /^https?:\/\/[A-Za-z0-9.-]+(:[0-9]{1,5})?(\/[!"$->@-~]*)?$/.test(e.issuer), 'its issuer is no address');
  must(bounded(255, e.subject) && bounded(512, e.audience), 'its subject or audience has a wrong size');
  must(e.nonce === challenge && e.time >= l.notBefore - 120n && e.time < l.notAfter, 'its OIDC evidence is for something else');
}
function asserted(a, challenge) { // WebAuthn level 3, section 7.2
  must(bounded(1023, a.credential) && bounded(2048, a.key, a.data) && bounded(4096, a.client) && bounded(1024, a.signature), 'a size');
  const [, scheme, host] = /^(https?):\/\/([a-z0-9.-]+)(?::[0-9]{1,5})?$/.exec(a.origin) ?? [];
  const below = (name) => `.${host}`.endsWith(`.${name}`);
  must(host && a.origin.length <= 512 && a.party && below(a.party), 'its origin is none of its party');
  must(scheme === 'https' || below('localhost'), 'its origin is not secure');
  const c = clientData(a.client), flags = a.data[32]; // present 1, verified 4, backup possible 8 and made 16, attested 64, extended 128
  must(c.type === 'webauthn.get' && c.challenge === challenge && c.origin === a.origin, 'its assertion is for something else');
  must(c.topOrigin === undefined && [undefined, false].includes(c.crossOrigin), 'it was made inside another site\'s page');
  must(a.data.length >= 37 && equalBytes(a.data.subarray(0, 32), sha256(join([a.party]))), 'it is for another party');
  must((flags & (64 | 4 | 1)) === 5 && (flags & (16 | 8)) !== 16 && (flags >= 128) === a.data.length > 37, 'its authenticator data');
  must(passkeyVerify(a.signature, join([a.data, sha256(a.client)]), decode(a.key)), 'its signature is wrong');
}
function presence(l) { // checks the proof, and leaves what it says in l.proof.said
  const { kind, data = new Uint8Array() } = l.proof ?? {};
  if (kind === 'bootstrap') return must(data.length === 0, 'has a bootstrap proof with data');
  must((kind === 'webauthn' || kind === 'oidc') && data.length <= 16 << 10, 'has no proof of its human that is known');
  const digest = sha3_256(encode(new Map([...l.map].filter(([key]) => key !== 12n)))); // of whatever the link says but the proof
  const challenge = base64(digest).replaceAll('+', '-').replaceAll('/', '_').replace('=', '');
  l.proof.said = read(kind, decode(data));
  return kind === 'oidc' ? authenticated(l.proof.said, challenge, l) : asserted(l.proof.said, challenge);
}

// ---- the chain of delegation ----
const covers = (wide, p) => wide === p || (wide.endsWith('*') && p.startsWith(wide.slice(0, -1)));
const allWithin = (patterns, above) => patterns.every((p) => above.some((wide) => covers(wide, p)));
function rules(l, above) { // of one link below another; the first has none above
  const { actions, resources, spend } = l.scope, few = (list) => list.length <= 256 && list.every((p) => join([p]).length <= 1024);
  must(l.issuer.domain && l.issuer.domain === l.subject.domain && l.issuer.tenant === l.subject.tenant, 'names nobody, or crosses tenants');
  must(l.subject.kind !== 'human', 'delegates to a human');
  must(l.notBefore < l.notAfter, 'is never in force');
  must(few(actions) && few(resources), 'has too many or too long patterns');
  if (!above) return must(l.issuer.kind === 'human' && !l.parent, 'does not begin with a human') && presence(l);
  const most = above.scope.spend, affordable = !most || (spend && spend.currency === most.currency && spend.nanos <= most.nanos);
  must(l.issuer.text === above.subject.text && !l.proof, 'is not issued by the subject above it, or claims a human\'s proof');
  must(l.notAfter <= above.notAfter && l.depth < above.depth, 'outlives the link above, or goes deeper than it allows');
  return must(affordable && allWithin(actions, above.scope.actions) && allWithin(resources, above.scope.resources), 'passes on too much');
}
async function verifyChain(chain, roots, holds) {
  must(chain.length <= 16, 'its chain has too many links');
  for (const [i, l] of chain.entries()) {
    if (l.verified) continue; // its digest of the link above makes all that is above the same in every chain
    await within(`link ${i + 1} of the chain, from ${l.issuer.text} to ${l.subject.text}`, () => {
      const issuers = i ? [chain[i - 1].key] : roots;
      must(issuers.some((k) => holds('creto/delegation/v1', l.body, l.signature, k)), 'is not signed by its issuer');
      rules(l, chain[i - 1]);
    });
    l.verified = true;
  }
}

// ---- keys, the log's head, inclusion ----
const certificate = (s) => ({ ...s, ...attempt(() => read('certificate', decode(s.body))) });
function trustedKeys({ root, certificates }, pinned, holds) { // the roots, and the log's keys in the order of their signatures
  const [composite, ...left] = certificates.map(certificate), certifies = (k, c) => holds('creto/key/v1', c.body, c.signature, k);
  const plain = left[0]?.role === 'checkpoint-ed25519' ? left.shift() : null;
  const roots = [root, ...left.filter((c) => c.role === 'root').map((c) => c.key)].filter((k) => k.fingerprint === pinned).slice(0, 1);
  must(certificates.length <= 128, 'too many certificates');
  while (left.length > 0 && roots.length > 0) {
    const next = left.findIndex((c) => roots.some((k) => k.id === c.signature.key)), [c] = left.splice(next, 1);
    must(next >= 0 && c.role === 'root' && roots.some((k) => certifies(k, c)), 'a root is certified by none that is trusted');
    roots.push(c.key);
  }
  must(roots.some((k) => k.id === root.id), `the bundle hangs on the root ${root.fingerprint}, not on the trusted ${pinned}`);
  const why = 'the log\'s key is not certified by the root';
  must(composite?.role === 'checkpoint' && certifies(root, composite) && (!plain || certifies(root, plain)), why);
  must(!plain || (plain.name === composite.name && plain.key.algorithm === 'ed25519-note' && plain.key.bytes.length === 32), why);
  return { roots, logs: plain ? [plain, composite] : [composite] };
}
const base64 = (b) => btoa(Array.from(b, (x) => String.fromCharCode(x)).join(''));
function unbase64(s) { // in its one form
  const b = Uint8Array.from(attempt(() => atob(s)) ?? '', (c) => c.charCodeAt(0));
  return must(base64(b) === s && b, 'it is malformed');
}
const ORIGIN = /^[^\u0000-\u0020\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000+\ufffd]+$/; // C2SP signed-note
function logHead(note, keys, holds) { // C2SP tlog-checkpoint
  const origin = keys[0].name, [name, size, root, gap, ...sigs] = utf8(note).split('\n'), signed = join([`${name}\n${size}\n${root}\n`]);
  must(name === origin && ORIGIN.test(origin) && /^(0|[1-9]\d*)$/.test(size) && BigInt(size) < 1n << 63n, 'it is malformed');
  must(unbase64(root).length === 32 && gap === '' && sigs.length === keys.length + 1 && sigs.at(-1) === '', 'it is malformed');
  for (const [i, { key }] of keys.entries()) {
    must(sigs[i].startsWith(`— ${origin} `), 'it is malformed');
    const plain = key.algorithm === 'ed25519-note', typed = [origin, '\n', plain ? [1] : [255], plain ? '' : key.algorithm, key.bytes];
    const blob = unbase64(sigs[i].slice(origin.length + 3)), bytes = blob.subarray(4), keyID = (plain ? sha256 : sha3_256)(join(typed));
    must(equalBytes(blob.subarray(0, 4), keyID.subarray(0, 4)), 'it is signed by another key');
    must(plain ? bytes.length === 64 && edVerify(bytes, signed, key.bytes)
      : holds('creto/checkpoint/v1', signed, { algorithm: key.algorithm, key: key.id, bytes }, key), 'its signature is wrong');
  }
  return { origin, size: BigInt(size), root: unbase64(root) };
}
function treeRoot(leaf, index, size, path) { // RFC 6962, section 2.1.1
  must(size === 1n ? path.length === 0 : path.at(-1)?.length === 32, 'its inclusion proof is of a wrong length');
  if (size === 1n) return sha256(join([[0], leaf]));
  const other = path.at(-1), rest = path.slice(0, -1), half = 1n << BigInt((size - 1n).toString(2).length - 1); // a power of 2 below size
  return sha256(join(index < half ? [[1], treeRoot(leaf, index, half, rest), other]
    : [[1], other, treeRoot(leaf, index - half, size - half, rest)]));
}

// ---- what a record says of people ----
const PSEUDONYM = /^subject\.[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/;
async function unseal(r, { key, subject }, box) { // by a key that is of this box alone, so that its nonce is zero
  const bound = sha256(join(['creto/audit/commitment/v1\0', key]));
  must(key.length === 32 && equalBytes(bound, box.commitment), 'the key is not the one that the record commits to');
  const aes = await crypto.subtle.importKey('raw', key, 'AES-GCM', false, ['decrypt']);
  const how = { name: 'AES-GCM', iv: new Uint8Array(12), additionalData: join([r.id, subject]) };
  const plain = await crypto.subtle.decrypt(how, aes, box.box).catch(() => must(false, 'a personal field does not open'));
  const person = read('person', decode(new Uint8Array(plain)));
  return must(person.principal.kind === 'human' && person, 'a personal field is of no human');
}
async function disclose(r, keys) { // puts back what the keys open; each must open something
  let used = 0;
  for (const [i, box] of (r.personal ?? []).entries()) {
    const key = keys.find((x) => equalBytes(x.subject, box.subject));
    if (!key) continue;
    used++;
    const { principal, why, detail = new Map() } = await unseal(r, key, box);
    const name = bytesToHex(box.subject).replace(/^(.{8})(.{4})(.{4})(.{4})/, 'subject.$1-$2-$3-$4-');
    const sealed = `spiffe://${principal.domain}/${principal.tenant}/human/${name}`, put = (x) => (x === sealed ? principal.text : x);
    if (r.who.text === sealed) r.who = principal;
    if (r.human?.text === sealed) r.human = principal;
    if (r.resource === `Human::${name}` && principal.tenant === r.who.tenant) r.resource = `Human::${principal.name}`;
    for (const c of r.consents ?? []) c.approver = put(c.approver);
    r.detail = new Map([...Array.from(r.detail ?? [], ([k, v]) => [k, put(v)]), ...(i === 0 ? detail : [])]);
    if (i === 0 && why) r.why = why;
  }
  must(used === keys.length, 'a disclosure is of nobody in it');
}
function consented(r, spent) { // each consent is to what was done, and is spent once
  const zero = new Uint8Array(32), numbered = (...values) => new Map(values.map((v, i) => [BigInt(i + 1), v]));
  for (const c of r.consents ?? []) {
    const request = [c.id, r.who.tenant ?? '', r.who.text, r.chain ?? zero, r.what, r.resource, r.args ?? zero];
    const question = numbered(...request, numbered(c.policy.id, c.policy.digest), c.expires);
    must(equalBytes(sha3_256(encode(question)), c.request), 'the consent is to another request than what was done');
    must(r.outcome === 'denied' || !spent.has(c.id), 'its consent was spent before');
    if (r.outcome !== 'denied') spent.add(c.id);
  }
}

/** verify returns what a bundle proves, and throws Refused if part of it does not hold. root is the fingerprint that is trusted, ''
 * for none, which leaves trusted false; check may stand in for holds, to remember. */
export async function verify(data, root = '', check = holds) {
  const b = await within('bundle', () => read('bundle', decode(data)));
  const pinned = root || b.keys.root.fingerprint, links = new Map(), chains = new Map(), spent = new Set(), records = [];
  const { roots, logs } = await within('key', () => trustedKeys(b.keys, pinned, check));
  const head = await within('checkpoint', () => logHead(b.checkpoint, logs, check));
  for (const [i, { body, signature }] of b.links.entries()) {
    await within(`link ${i + 1}`, () => {
      const map = decode(body), digest = sha3_256(body);
      must(i === 0 || ascending([sha3_256(b.links[i - 1].body), digest]), 'out of order');
      links.set(bytesToHex(digest), { ...read('link', map), map, body, signature, digest });
    });
  }
  for (const last of links.values()) {
    const chain = [];
    for (let l = last; l && chain.length <= 16; l = l.parent && links.get(bytesToHex(l.parent))) chain.unshift(l);
    chains.set(bytesToHex(sha3_256(encode(chain.map((l) => l.digest)))), chain);
  }
  for (const [i, { leaf, index, proof }] of b.receipts.entries()) {
    await within(`record ${i + 1} at index ${index}`, async () => {
      must(index >= 0n && index < head.size && equalBytes(treeRoot(leaf, index, head.size, proof), head.root), 'it is not in the log');
      must(i === 0 || b.receipts[i - 1].index < index, 'out of order');
      const r = read('record', decode(leaf)), chain = r.chain ? chains.get(bytesToHex(r.chain)) : [], keys = [];
      consented(r, spent);
      while (b.disclosures?.[0]?.index === index) keys.push(b.disclosures.shift());
      must(ascending(keys.map((d) => d.subject)), 'its disclosures are out of order');
      await disclose(r, keys);
      records.push({ index, record: r, chain: must(chain, 'the bundle lacks the links of its chain') });
      await verifyChain(chain, roots, check);
      if (!r.chain) return;
      const time = r.stamp.physical, second = 1000000000n, human = r.human ?? { text: '' };
      must(chain.every((l) => time >= l.notBefore * second && time < l.notAfter * second), 'a link of its chain was not in force');
      must(chain.at(-1).subject.text === r.who.text, 'it names another agent');
      must(chain[0].issuer.text === human.text || (human.kind === 'human' && PSEUDONYM.test(human.name)), 'it names another human');
    });
  }
  await within('bundle', () => must(records.length > 0, 'it holds no record'));
  const needless = [...links.values()].findIndex((l) => !l.verified);
  await within(`link ${needless + 1}`, () => must(needless < 0, 'no record of the bundle needs it'));
  await within('disclosure', () => must(!b.disclosures?.length, 'one opens nothing of a record, or is out of order'));
  return { trusted: root !== '', root: pinned, origin: head.origin, size: head.size, records };
}

if (globalThis.process?.argv?.[1] && import.meta.url.endsWith(globalThis.process.argv[1].split('/').pop())) {
  const { readFileSync } = await import('node:fs'), [file, flag, root] = process.argv.slice(2);
  try {
    const pins = flag === '--root' && /^sha3-256:(?!0+$)[0-9a-f]{64}$/.test(root);
    must(file && (pins || flag === undefined), 'usage: node verify.mjs FILE [--root sha3-256:FINGERPRINT]');
    const v = await verify(new Uint8Array(readFileSync(file)), root);
    for (const { index, record: r, chain } of v.records) {
      const people = [...chain.map((l) => l.issuer.name), r.who.name].join(' → ');
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
