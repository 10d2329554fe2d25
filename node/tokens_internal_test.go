package node

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/client"
)

// TestCertificateBound: a token that is bound to a certificate opens a door over
// a connection with that certificate alone.
func TestCertificateBound(t *testing.T) {
	cfg := Default()
	cfg.Server.Listen = "localhost:0"
	n, err := Open(t.Context(), Options{DataDir: t.TempDir(), Version: "test", Config: cfg, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = n.Close() }()
	ctx := creto.WithCaller(t.Context(), n.owner)
	if _, err := n.AddAgent(ctx, client.NewAgent{Name: "bob"}); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(n.gateway.Doors(n.bearer))
	server.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	server.StartTLS()
	defer server.Close()
	with := func() (*http.Client, string) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		transport := server.Client().Transport.(*http.Transport).Clone()
		transport.TLSClientConfig.Certificates = []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}
		digest := sha256.Sum256(der)
		return &http.Client{Transport: transport}, base64.RawURLEncoding.EncodeToString(digest[:])
	}
	holder, thumbprint := with()
	thief, _ := with()
	token, err := n.Token(ctx, "bob", client.NewToken{X5T: thumbprint})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		client *http.Client
		want   int
	}{
		{"the certificate", holder, 200}, {"another certificate", thief, 401}, {"no certificate", server.Client(), 401}, {"the certificate again", holder, 200},
	} {
		r, err := http.NewRequestWithContext(t.Context(), "GET", server.URL+"/v1/models", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+token.Token)
		response, err := test.client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
		if response.StatusCode != test.want {
			t.Errorf("with %s the door answers %d, want %d", test.name, response.StatusCode, test.want)
		}
		test.client.CloseIdleConnections()
	}
	r := httptest.NewRequestWithContext(t.Context(), "GET", "/v1/models", nil)
	r.Header.Set("Authorization", "Bearer "+token.Token)
	inClear := httptest.NewRecorder()
	n.gateway.Doors(n.bearer).ServeHTTP(inClear, r)
	if inClear.Code != 401 {
		t.Errorf("in clear the door answers %d, want 401", inClear.Code)
	}
}
