// Shows what a bundle proves. What it shows was written by others: it is only ever set as text, with what cannot be seen
// named and marked.
import { Refused, verify } from '/console/verifier/verify.mjs';

const form = document.getElementById('verify'), file = document.getElementById('bundle'), root = document.getElementById('root'), result = document.getElementById('result');
const ROOT = /^sha3-256:[0-9a-f]{64}$/;
const hidden = /(?![\n\t])[\p{C}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}\u2800]/u;

function element(name, ...children) {
  const [tag, ...classes] = name.split('.'), e = document.createElement(tag);
  e.className = classes.join(' ');
  e.append(...children);
  return e;
}
const written = (text) => Array.from(text, (c) => (hidden.test(c) ? element('mark', 'U+' + c.codePointAt(0).toString(16).toUpperCase().padStart(4, '0')) : c));
const code = (text) => element('code', ...written(text));
const person = (x) => (/^subject\.[0-9a-f-]{36}$/.test(x.name) ? element('span.soft', 'somebody whose name is sealed') : element('span', ...written(x.name)));
const rows = (...pairs) => element('dl', ...pairs.filter(([, what]) => what).flatMap(([name, what]) => [element('dt', name), element('dd', ...[what].flat())]));
// known says how the human of a chain was known. The verifier leaves what the proof says in said.
function known({ kind, said }) {
  if (kind === 'webauthn') return `by passkey (${said.party})`;
  return kind === 'oidc' ? `by OIDC ${said.issuer} subject ${said.subject}` : 'by bootstrap: whoever held the data directory';
}
const named = (text) => { const [, name] = /^spiffe:\/\/[^/]*\/[^/]*\/[^/]*\/([^/]*)$/.exec(text) ?? [null, text]; return person({ name }); };

function shown({ index, record: r, chain }) {
  const people = chain.length ? [chain[0].issuer, ...chain.map((l) => l.subject)] : [];
  const sealed = (r.personal ?? []).length && [r.who, r.human ?? {}].some((x) => x.name?.startsWith('subject.'));
  return element('div.item',
    element('div', element('strong', code(r.what)), ' ', code(r.resource), ' ', element(`span.state.${/^[a-z]+$/.test(r.outcome) ? r.outcome : 'unknown'}`, ...written(r.outcome))),
    rows(
      ['Time', new Date(Number(r.stamp.physical / 1000000n)).toISOString().replace('T', ' ').replace('Z', ' UTC') + (r.stamp.source === 'consensus' ? '' : ', by a clock of its own')],
      ['Who', [person(r.who), r.human ? ' for ' : '', r.human ? person(r.human) : '']],
      ['Chain', people.length ? people.flatMap((x, i) => [i ? ' → ' : '', `${x.kind} `, person(x)]) : null],
      ['Human', people.length ? [person(people[0]), ' was known ', ...written(known(chain[0].proof))] : null],
      ['Why', r.why ? written(r.why) : null],
      ['Decided', r.decision ? [...written(r.decision.kind), ...(r.decision.policies ?? []).flatMap((p) => [' by ', code(p.id)])] : null],
      ...(r.consents ?? []).map((c) => ['Consent', [named(c.approver), ' through ', ...written(c.channel), c.known ? ', known as ' : '', ...written(c.known), c.human ? '' : '; no human decided']]),
      ['Sandbox', r.isolation ? ['isolated by ', ...written(r.isolation)] : null],
      ...[...(r.detail ?? [])].map(([key, value]) => [key, written(value)]),
      ['Sealed', sealed ? 'what it says of people; its maker can disclose it' : null],
      ['Place', `record ${index} of the log`],
    ));
}

async function run() {
  const bundle = file.files[0];
  if (!bundle) return;
  const pinned = root.value.trim();
  if (pinned && !ROOT.test(pinned)) {
    result.replaceChildren(element('p.notice', 'The root is a fingerprint: sha3-256: and 64 hexadecimal digits.'));
    return;
  }
  result.replaceChildren(element('p.soft', 'Verifying…'));
  await new Promise((done) => { setTimeout(done); }); // let it be painted
  try {
    const v = verify(new Uint8Array(await bundle.arrayBuffer()), pinned), count = `${v.records.length} ${v.records.length === 1 ? 'record' : 'records'}`;
    result.replaceChildren(
      element(v.trusted ? 'p.verdict.good' : 'p.verdict.open', v.trusted ? `Verified: ${count}, under the root that you trust.` : `Consistent: ${count}. Whoever has the root below signed all of it; compare it with what its node prints, and enter it above.`),
      rows(['Log', [...written(v.origin), `, of ${v.size} records`]], ['Root', code(v.root)]), ...v.records.map(shown));
  } catch (e) {
    if (!(e instanceof Refused)) throw e;
    result.replaceChildren(element('p.verdict.bad', 'Refused: this bundle proves nothing.'), element('p.notice', ...written(e.message)));
  }
}

form.addEventListener('submit', (e) => { e.preventDefault(); run(); });
form.addEventListener('change', run);
for (const kind of ['dragenter', 'dragover', 'dragleave', 'drop']) {
  document.addEventListener(kind, (e) => {
    e.preventDefault();
    form.classList.toggle('over', kind === 'dragenter' || kind === 'dragover');
    if (kind === 'drop' && e.dataTransfer.files.length) { file.files = e.dataTransfer.files; run(); }
  });
}
