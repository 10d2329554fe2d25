// Passkeys are what a form cannot do: a form with data-passkey asks the
// authenticator first and sends its answer along.
"use strict";
(() => {
  const bytes = (text) => Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (c) => c.charCodeAt(0));
  const text = (buffer) => btoa(String.fromCharCode(...new Uint8Array(buffer))).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
  const named = (list) => (list ?? []).map((c) => ({ ...c, id: bytes(c.id) }));

  const post = async (address, fields) => {
    const response = await fetch(address, { method: "POST", body: new URLSearchParams(fields), headers: { Accept: "application/json" } });
    if (!(response.headers.get("Content-Type") ?? "").startsWith("application/json")) {
      throw new Error(response.status === 401 ? "Your session has ended: load this page again." : "That did not work.");
    }
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.message);
    return answer;
  };

  const ask = async (kind, o) => {
    o.challenge = bytes(o.challenge);
    if (kind === "create") {
      o.user.id = bytes(o.user.id);
      o.excludeCredentials = named(o.excludeCredentials);
      const c = await navigator.credentials.create({ publicKey: o });
      return { id: c.id, rawId: text(c.rawId), type: c.type, authenticatorAttachment: c.authenticatorAttachment ?? "", clientExtensionResults: {}, response: {
        clientDataJSON: text(c.response.clientDataJSON), attestationObject: text(c.response.attestationObject), transports: c.response.getTransports?.() ?? [] } };
    }
    o.allowCredentials = named(o.allowCredentials);
    const c = await navigator.credentials.get({ publicKey: o });
    return { id: c.id, rawId: text(c.rawId), type: c.type, authenticatorAttachment: c.authenticatorAttachment ?? "", clientExtensionResults: {}, response: {
      clientDataJSON: text(c.response.clientDataJSON), authenticatorData: text(c.response.authenticatorData),
      signature: text(c.response.signature), userHandle: c.response.userHandle ? text(c.response.userHandle) : "" } };
  };

  const why = (error) => {
    switch (error.name) {
      case "NotAllowedError": return "The passkey was not used: it was cancelled, took too long, or none fits.";
      case "InvalidStateError": return "This device has a passkey of yours already.";
      case "SecurityError": return "Passkeys do not work at this address; open the console at the address that its node prints.";
    }
    return error.message;
  };

  for (const form of document.querySelectorAll("form[data-passkey]")) {
    const notice = form.querySelector(".notice");
    const button = form.querySelector("button");
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      notice.hidden = true;
      button.disabled = true;
      try {
        if (!window.PublicKeyCredential) throw new Error("This browser has no passkeys.");
        const fields = Object.fromEntries(new FormData(form));
        const { ceremony, publicKey } = await post(form.action + "/begin", fields);
        const answer = JSON.stringify(await ask(form.dataset.passkey, publicKey));
        const { location: to } = await post(form.action, { ...fields, ceremony, answer });
        location.assign(to);
      } catch (error) {
        notice.textContent = why(error);
        notice.hidden = false;
        button.disabled = false;
      }
    });
  }
})();
