// Takes the files that verify.mjs borrows from the npm registry, of @noble into noble/ and of cborg into cborg/, with relative
// imports in place of the packages' names, and writes their SHA-256 into vendor.json. Run it in this directory: node vendor.mjs
// The versions and the integrity of their archives are those of vendor.json: change them there to move on.
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, posix } from 'node:path';

const entries = [
  'cborg/cborg.js', 'noble/ciphers/aes.js', 'noble/curves/abstract/modular.js', 'noble/curves/ed25519.js', 'noble/curves/nist.js',
  'noble/curves/utils.js', 'noble/post-quantum/ml-dsa.js', 'noble/hashes/sha2.js', 'noble/hashes/sha3.js', 'noble/hashes/utils.js',
];
const pins = JSON.parse(readFileSync('vendor.json', 'utf8')), dir = mkdtempSync(join(tmpdir(), 'vendor-'));
const digest = (algorithm, data, encoding) => createHash(algorithm).update(data).digest(encoding);
const place = (name) => name.replace('@', '');
for (const [name, { version, integrity }] of Object.entries(pins.packages)) {
  const [{ filename }] = JSON.parse(execFileSync('npm', ['pack', '--json', `${name}@${version}`], { cwd: dir }));
  const archive = readFileSync(join(dir, filename)), got = `sha512-${digest('sha512', archive, 'base64')}`;
  if (got !== integrity) throw new Error(`${name}@${version} is ${got}, not ${integrity}`);
  mkdirSync(join(dir, place(name)), { recursive: true });
  execFileSync('tar', ['xzf', join(dir, filename), '-C', join(dir, place(name)), '--strip-components=1']);
}
for (const old of ['noble', 'cborg']) rmSync(old, { recursive: true, force: true });
const files = {}, todo = [...entries, ...Object.keys(pins.packages).map((name) => `${place(name)}/LICENSE`)];
for (const file of todo) {
  const importing = /^((?:import|export)\b[^'"\n]*?from |import )(['"])([^'"]+)\2/gm;
  const source = readFileSync(join(dir, file), 'utf8').replace(importing, (_, begin, quote, from) => {
    const target = from.startsWith('@') ? place(from) : posix.join(posix.dirname(file), from);
    if (!todo.includes(target)) todo.push(target);
    const path = posix.relative(posix.dirname(file), target);
    return `${begin}${quote}${path.startsWith('.') ? path : `./${path}`}${quote}`;
  }).replace(/^\/\/# sourceMappingURL=.*\n?/gm, '');
  mkdirSync(dirname(file), { recursive: true });
  writeFileSync(file, source);
  files[file] = digest('sha256', source, 'hex');
}
rmSync(dir, { recursive: true });
pins.files = Object.fromEntries(Object.entries(files).sort(([a], [b]) => (a < b ? -1 : 1)));
writeFileSync('vendor.json', JSON.stringify(pins, null, 2) + '\n');
console.log(`${Object.keys(files).length} files`);
