// What the verifier reads with: bytes, deterministic CBOR in its one form, and the shapes of what is encoded.
import { sha3_256 } from './noble/hashes/sha3.js';

/** Wrong says what does not hold, without its part yet. */
export class Wrong extends Error {}
export const must = (ok, why) => { if (!ok) throw new Wrong(why); };
/** Refused names the part of a bundle that does not hold, and why. */
export class Refused extends Error {}
export const within = (part, f) => {
  try { return f(); } catch (e) { throw e instanceof Wrong ? new Refused(`${part}: ${e.message}`) : e; }
};

// ---- bytes ----
export const ascii = (s) => new TextEncoder().encode(s);
export const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
export const hex = (b) => Array.from(b, (x) => x.toString(16).padStart(2, '0')).join('');
export const number = (b) => BigInt('0x0' + hex(b));
export const compare = (a, b) => { const i = a.findIndex((x, j) => x !== b[j]); return i < 0 ? a.length - b.length : a[i] - (b[i] ?? -1); };
export const same = (a, b) => compare(a, b) === 0;
export const join = (...parts) => Uint8Array.from(parts.reduce((all, p) => { for (const x of p) all.push(x); return all; }, []));
const base64 = (b) => btoa(Array.from(b, (x) => String.fromCharCode(x)).join(''));
export const base64url = (b) => base64(b).replaceAll('+', '-').replaceAll('/', '_').replaceAll('=', '');
export function unbase64(s) { // in its one form
  let b = '';
  try { b = Uint8Array.from(atob(s), (c) => c.charCodeAt(0)); } catch { /* it is compared */ }
  must(base64(b) === s, 'it is malformed');
  return b;
}

// ---- deterministic CBOR (RFC 8949, section 4.2.1): numbers, bytes, text, lists, maps, booleans ----
export function decode(data) {
  let at = 0;
  const check = (ok) => must(ok, 'it is no canonical encoding');
  const take = (n) => { check(n <= BigInt(data.length - at)); at += Number(n); return data.subarray(at - Number(n), at); };
  function item(depth) {
    const start = at, first = take(1n)[0], info = first & 31, major = first >> 5;
    check(depth <= 16 && info < 28);
    const n = info < 24 ? BigInt(info) : number(take(1n << BigInt(info - 24)));
    check(info < 24 || n >= [24n, 1n << 8n, 1n << 16n, 1n << 32n][info - 24]);
    switch (major) {
      case 0: return n;
      case 1: return -1n - n;
      case 2: return take(n);
      case 3: { const b = take(n); try { return utf8.decode(b); } catch { return check(false); } }
      case 7: check(first === 0xf4 || first === 0xf5); return first === 0xf5;
    }
    check(major < 6 && n <= 131072n);
    if (major === 4) return Array.from({ length: Number(n) }, () => item(depth + 1));
    const pairs = new Map();
    for (let i = 0n, last = []; i < n; i++) {
      const from = at, key = item(depth + 1), raw = data.subarray(from, at);
      check(compare(last, raw) < 0 && (typeof key === 'bigint' || typeof key === 'string'));
      pairs.set(key, { value: item(depth + 1), raw: data.subarray(from, at) });
      last = raw;
    }
    return { pairs, raw: data.subarray(start, at) };
  }
  check(data.length <= 64 << 20);
  const value = item(1);
  check(at === data.length);
  return value;
}
function head(major, n) {
  const size = n < 24n ? 0 : n < 1n << 8n ? 1 : n < 1n << 16n ? 2 : n < 1n << 32n ? 4 : 8, out = [(major << 5) | (size ? 24 + Math.log2(size) : Number(n))];
  for (let i = size - 1; i >= 0; i--) out.push(Number((n >> BigInt(8 * i)) & 255n));
  return out;
}
export const encode = (v) => typeof v === 'bigint' ? (v < 0n ? head(1, -1n - v) : head(0, v)) : typeof v === 'string' ? join(head(3, BigInt(ascii(v).length)), ascii(v))
  : v instanceof Uint8Array ? join(head(2, BigInt(v.length)), v) : v.raw ? v.raw : join(head(4, BigInt(v.length)), ...v.map(encode));
export const numbered = (...values) => join(head(5, BigInt(values.length)), ...values.map((v, i) => join(encode(BigInt(i + 1)), encode(v))));

// ---- what is encoded. A field that may be absent is absent when it is empty. ----
const a = (what, ok) => (v) => { must(ok(v), `${what} was expected`); return v; };
export const text = a('text', (v) => typeof v === 'string');
export const bytes = a('bytes', (v) => v instanceof Uint8Array);
export const bool = a('a boolean', (v) => typeof v === 'boolean');
const sized = (n) => a(`a value of ${n} bytes`, (v) => v instanceof Uint8Array && v.length === n);
export const digest = sized(32);
export const uuid = sized(16);
export const uint = a('a number', (v) => typeof v === 'bigint' && v >= 0n);
export const int = a('a number', (v) => typeof v === 'bigint' && BigInt.asIntN(64, v) === v);
const isMap = a('a map', (v) => v?.pairs instanceof Map);
export const list = (type) => (v) => a('a list', Array.isArray)(v).map(type);
export const words = (v) => new Map(Array.from(isMap(v).pairs, ([k, x]) => [text(k), text(x.value)]));
const none = (v) => v === '' || v === false || v === 0n || v.length === 0 || v.size === 0 || v.none || (v instanceof Uint8Array && v.length === 32 && !v.some((x) => x));
export const struct = (...fields) => (v) => { // fields are [key, name, type, may be absent]
  const out = { raw: isMap(v).raw, pairs: v.pairs };
  for (const key of v.pairs.keys()) must(fields.some(([known]) => BigInt(known) === key), `a map has the unknown key ${key}`);
  for (const [key, name, type, optional] of fields) {
    const pair = v.pairs.get(BigInt(key));
    must(pair || optional, `${name} is missing`);
    if (pair) out[name] = type(pair.value);
    must(!pair || !optional || !none(out[name]), `${name} is there and empty`);
  }
  return out;
};
const NAME = /^[a-z0-9][a-z0-9._-]{0,62}$/;
export function id(v) {
  if (v === '') return { text: v, none: true };
  const [, domain, tenant, kind, name] = /^spiffe:\/\/([^/]*)\/([^/]*)\/(agent|human|workload)\/([^/]*)$/.exec(text(v)) ?? must(false, `${v} is nobody's name`);
  must([domain, tenant, name].every((x) => NAME.test(x)), `${v} is nobody's name`);
  return { text: v, domain, tenant, kind, name };
}
export function money(v) {
  if (v === '') return { none: true };
  const [, sign, whole, part, currency] = /^(-?)(0|[1-9]\d*)\.(\d{2}|\d{2,8}[1-9]) ([A-Z]{3})$/.exec(text(v)) ?? must(false, 'an amount is malformed');
  const nanos = BigInt(whole + part.padEnd(9, '0'));
  must(v.length <= 64 && nanos < 1n << 127n && (nanos || !sign), 'an amount is malformed');
  return { nanos: sign ? -nanos : nanos, currency };
}
export function publicKey(v) {
  const k = struct([1, 'algorithm', text], [2, 'bytes', bytes])(v), sum = sha3_256(k.raw);
  return { ...k, fingerprint: 'sha3-256:' + hex(sum), id: hex(sum.subarray(0, 16)) };
}
