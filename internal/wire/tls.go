package wire

import (
	"crypto/tls"
	"crypto/x509"

	"creto.dev"
	"creto.dev/fault"
)

// Credentials are one side's half of mutual TLS.
type Credentials struct {
	// Certificate is what this side shows, with its key. The zero value shows
	// none, which only a client may.
	Certificate tls.Certificate
	// Roots are those whose certificates it trusts in the other. nil trusts
	// nobody: the system's roots are never meant.
	Roots *x509.CertPool
}

// Source gives the credentials as they are now. It is asked at each handshake,
// so that certificates and roots rotate without a restart; it must be quick and
// safe for concurrent use.
type Source func() (Credentials, error)

// ServerTLS returns the configuration of a listener that shows source's
// certificate, takes clients' certificates of its roots as clients says, and
// speaks the given protocols, the first that the client also speaks. Without
// roots no client is asked for a certificate, and one that must show one is
// refused. Sessions are never resumed: each handshake asks source.
func ServerTLS(source Source, clients tls.ClientAuthType, protocols ...string) *tls.Config {
	const op fault.Op = "wire.ServerTLS"
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: protocols,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			c, err := source()
			switch {
			case err != nil:
				return nil, fault.Wrap(op, err)
			case len(c.Certificate.Certificate) == 0:
				return nil, fault.New(op, fault.FailedPrecondition, "there is no certificate to show")
			case c.Roots == nil && clients == tls.RequireAndVerifyClientCert:
				return nil, fault.New(op, fault.FailedPrecondition, "there are no roots to know clients by")
			}
			auth := clients
			if c.Roots == nil { // nil would mean the system's
				auth = tls.NoClientCert
			}
			return &tls.Config{
				MinVersion: tls.VersionTLS13, NextProtos: protocols, Certificates: []tls.Certificate{c.Certificate},
				ClientAuth: auth, ClientCAs: c.Roots, SessionTicketsDisabled: true,
			}, nil
		},
	}
}

// clientTLS returns the configuration of a client that shows source's
// certificate and talks to peer, or to whoever has a certificate for host.
func clientTLS(source Source, peer creto.ID, host string) *tls.Config {
	const op fault.Op = "wire.clientTLS"
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		ServerName: host,
		NextProtos: []string{"h2"},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			c, err := source()
			return &c.Certificate, fault.Wrap(op, err)
		},
		// The roots rotate and a peer may be named by its SPIFFE id, neither of
		// which the standard verification can do: VerifyConnection does all of
		// it.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			c, err := source()
			if err != nil {
				return fault.Wrap(op, err)
			}
			if c.Roots == nil || len(state.PeerCertificates) == 0 {
				return fault.New(op, fault.SecurityViolation, "there are no roots to know the server by")
			}
			options := x509.VerifyOptions{Roots: c.Roots, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
			for _, certificate := range state.PeerCertificates[1:] {
				options.Intermediates.AddCert(certificate)
			}
			if peer.IsZero() {
				options.DNSName = host
			}
			leaf := state.PeerCertificates[0]
			if _, err := leaf.Verify(options); err != nil {
				return fault.WrapAs(op, fault.SecurityViolation, err, "the server's certificate is not one of ours")
			}
			if id, ok := idOf(leaf); !peer.IsZero() && (!ok || id != peer) {
				return fault.New(op, fault.SecurityViolation, "the server is not %s", peer)
			}
			return nil
		},
	}
}

// PeerID returns whose certificate the client of a connection showed, if it was
// verified and is an X.509-SVID of Creto's form.
func PeerID(state tls.ConnectionState) (creto.ID, bool) {
	if len(state.VerifiedChains) == 0 || len(state.VerifiedChains[0]) == 0 {
		return creto.ID{}, false
	}
	return idOf(state.VerifiedChains[0][0])
}

// idOf returns the one SPIFFE id of a leaf certificate (X.509-SVID, sections 2
// and 4.1).
func idOf(leaf *x509.Certificate) (creto.ID, bool) {
	if leaf.IsCA || len(leaf.URIs) != 1 {
		return creto.ID{}, false
	}
	id, err := creto.ParseID(leaf.URIs[0].String())
	return id, err == nil
}
