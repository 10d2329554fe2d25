package provider

import (
	"bytes"
	"encoding/json"
	"strings"

	"creto.dev/fault"
	"creto.dev/inference"
)

// stays refuses what would have a local server reach beyond itself. An engine
// fetches the addresses that a request names from where it stands, inside the
// operator's network: the caller would get there past every policy. And what
// Ollama lists as a model of its cloud, it sends there.
func (c Config) stays(op fault.Op, r inference.Request) error {
	if !c.Local {
		return nil
	}
	if err := c.staysModel(op, r.Model); err != nil {
		return err
	}
	for i, m := range r.Messages {
		for _, p := range m.Content {
			named := p.Image != nil && p.Image.MediaType == "" && p.Image.FileID == "" || p.Image != nil && namesAddress(p.Image.Extra)
			if named || namesAddress(p.Extra) {
				return fault.New(op, fault.InferenceNotSupported, "messages[%d]: provider %s is local and fetches nothing; send the data itself", i, c.Name)
			}
		}
		if namesAddress(m.Extra) {
			return fault.New(op, fault.InferenceNotSupported, "messages[%d]: provider %s is local and fetches nothing; send the data itself", i, c.Name)
		}
	}
	return nil
}

// staysModel refuses the models of Ollama's cloud, whose tags are cloud, or end in
// -cloud (https://docs.ollama.com/cloud).
func (c Config) staysModel(op fault.Op, model string) error {
	at := strings.LastIndexByte(model, ':')
	tag := strings.ToLower(strings.TrimSpace(model[at+1:]))
	if c.Local && at >= 0 && (tag == "cloud" || strings.HasSuffix(tag, "-cloud")) {
		return fault.New(op, fault.InferenceModelNotFound, "provider %s is local, and this is a model of Ollama's cloud", c.Name)
	}
	return nil
}

// namesAddress reports whether a field that is not known here names what a server
// could fetch: a text that begins like an address, and is not the data itself.
func namesAddress(extra inference.Extra) bool {
	for _, raw := range extra {
		decoder := json.NewDecoder(bytes.NewReader(raw))
		for {
			token, err := decoder.Token()
			if err != nil {
				break // it was valid when the request was read
			}
			if text, ok := token.(string); ok && isAddress(text) {
				return true
			}
		}
	}
	return false
}

// isAddress reports whether a text begins with a scheme (RFC 3986, section 3.1) and
// two slashes.
func isAddress(text string) bool {
	scheme, _, ok := strings.Cut(strings.TrimLeft(text, " \t\r\n"), "://")
	return ok && scheme != "" && len(scheme) <= 32 && !strings.ContainsFunc(scheme, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '+' && r != '-' && r != '.'
	})
}
