package node

import (
	"testing"

	"creto.dev/fault"
	"creto.dev/health"
	"creto.dev/pqc"
	"creto.dev/pqc/localpqc"
)

// wrongCrypto is a provider of which one part does not work.
type wrongCrypto struct {
	pqc.Provider

	encrypt, decrypt error
	plaintext        []byte
}

func (w wrongCrypto) Encrypt(plaintext, associated []byte, key pqc.SymmetricKey) (pqc.EncryptedData, error) {
	if w.encrypt != nil {
		return pqc.EncryptedData{}, w.encrypt
	}
	return w.Provider.Encrypt(plaintext, associated, key)
}

func (w wrongCrypto) Decrypt(data pqc.EncryptedData, associated []byte, key pqc.SymmetricKey) ([]byte, error) {
	if w.plaintext != nil || w.decrypt != nil {
		return w.plaintext, w.decrypt
	}
	return w.Provider.Decrypt(data, associated, key)
}

func TestCryptoHealth(t *testing.T) {
	p := localpqc.New()
	broken := fault.New("test", fault.Unavailable, "broken")
	for _, tt := range []struct {
		name     string
		provider pqc.Provider
		want     health.Status
	}{
		{"works", p, health.Status{State: health.Healthy}},
		{"cannot encrypt", wrongCrypto{Provider: p, encrypt: broken}, health.Status{State: health.Unhealthy, Reason: "Crypto encryption failed"}},
		{"cannot decrypt", wrongCrypto{Provider: p, decrypt: broken}, health.Status{State: health.Unhealthy, Reason: "Crypto round-trip failed"}},
		{"decrypts to something else", wrongCrypto{Provider: p, plaintext: []byte("x")}, health.Status{State: health.Unhealthy, Reason: "Crypto round-trip failed"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := cryptoHealth(tt.provider); got != tt.want {
				t.Errorf("cryptoHealth = %+v, want %+v", got, tt.want)
			}
		})
	}
}
