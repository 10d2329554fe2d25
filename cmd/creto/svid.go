package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"creto.dev/client"
	"creto.dev/fault"
)

func (a *app) tokenCommand() *cobra.Command {
	var want client.NewToken
	var certificate string
	c := &cobra.Command{
		Use:   "token AGENT",
		Short: "Print an access token for an agent that runs elsewhere",
		Long: `Print an access token, valid for 15 minutes, for an agent that runs outside a
sandbox. It goes where a vendor's SDK wants its API key:

  OPENAI_BASE_URL=http://localhost:7300/v1 OPENAI_API_KEY=$(creto token NAME) python3 agent.py

Bound to a key, it is worth nothing to who steals it: with --dpop-jkt each request
must come with a DPoP proof (RFC 9449), with --client-certificate over a TLS
connection with that certificate (RFC 8705). A token for another audience is one
for a service that verifies it with the keys at /.well-known/jwks.json.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if certificate != "" {
				var err error
				if want.X5T, err = certificateThumbprint(certificate); err != nil {
					return err
				}
			}
			return a.node(func(n *client.Client) error {
				token, err := n.Token(c.Context(), args[0], want)
				if err != nil {
					return err
				}
				return a.print(token, func(w io.Writer) { fmt.Fprintln(w, token.Token) })
			})
		},
	}
	c.Flags().StringVar(&want.Audience, "audience", "", "`URI` of the service that it is for (default the node itself)")
	c.Flags().StringVar(&want.JKT, "dpop-jkt", "", "bind it to a DPoP key: the key's `THUMBPRINT` (RFC 7638)")
	c.Flags().StringVar(&certificate, "client-certificate", "", "bind it to the TLS client certificate in `FILE` (PEM)")
	c.Flags().StringVar(&want.Instance, "instance", "", "`NAME` of the process, to tell several apart")
	c.MarkFlagsMutuallyExclusive("dpop-jkt", "client-certificate")
	return c
}

// certificateThumbprint returns x5t#S256 of the first certificate in a file (RFC
// 8705, section 3.1).
func certificateThumbprint(path string) (string, error) {
	const op fault.Op = "creto.certificateThumbprint"
	text, err := os.ReadFile(path)
	if err != nil {
		return "", fault.WrapAs(op, fault.InvalidArgument, err, "the certificate %s cannot be read", path)
	}
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		digest := sha256.Sum256(block.Bytes)
		return base64.RawURLEncoding.EncodeToString(digest[:]), nil
	}
	return "", fault.New(op, fault.InvalidArgument, "%s holds no certificate in PEM", path)
}

func (a *app) svidCommand() *cobra.Command {
	c := &cobra.Command{Use: "svid", Short: "Issue SPIFFE identities: certificates and tokens for peers that know SPIFFE"}
	c.AddCommand(a.svidX509Command(), a.svidJWTCommand())
	return c
}

func (a *app) svidJWTCommand() *cobra.Command {
	var want client.NewSVID
	c := &cobra.Command{
		Use:   "jwt NAME",
		Short: "Print a JWT-SVID of an agent",
		Long: `Print a JWT-SVID: a token, valid for 5 minutes, whose sub is the agent's SPIFFE id,
for services that look at nothing else. It is verified with the trust bundle at
/spiffe/bundle, or as an OpenID Connect token, and cannot be revoked.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			want.Name = args[0]
			return a.node(func(n *client.Client) error {
				token, err := n.JWTSVID(c.Context(), want)
				if err != nil {
					return err
				}
				return a.print(token, func(w io.Writer) { fmt.Fprintln(w, token.Token) })
			})
		},
	}
	c.Flags().StringVar(&want.Audience, "audience", "", "`URI` or SPIFFE id of the service that it is for (required)")
	c.Flags().BoolVar(&want.Workload, "workload", false, "NAME is a workload and no agent")
	return c
}

func (a *app) svidX509Command() *cobra.Command {
	var want client.NewSVID
	var out string
	c := &cobra.Command{
		Use:   "x509 NAME",
		Short: "Write an X.509-SVID of an agent, its key and the trust bundle",
		Long: `Make a key and write it with a certificate for the agent's SPIFFE id, valid for an
hour, and the certificates that peers are verified with: svid.pem, svid_key.pem
and svid_bundle.pem in the directory. The key does not leave this machine. Run it
again before the certificate ends; a connection that is open stays open.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			want.Name = args[0]
			if out == "" {
				return fault.New("creto.svid", fault.InvalidArgument, "name a directory for the files with --out")
			}
			request, key, err := certificateRequest()
			if err != nil {
				return err
			}
			want.Request = request
			return a.node(func(n *client.Client) error {
				svid, err := n.X509SVID(c.Context(), want)
				if err != nil {
					return err
				}
				if err := writeSVID(out, svid, key); err != nil {
					return err
				}
				return a.print(svid, func(w io.Writer) {
					fmt.Fprintf(w, "wrote %s, valid until %s\n", filepath.Join(out, "svid.pem"), svid.Expires.Format(time.RFC3339))
				})
			})
		},
	}
	c.Flags().StringVar(&out, "out", "", "`DIRECTORY` for the files (required)")
	c.Flags().BoolVar(&want.Workload, "workload", false, "NAME is a workload and no agent")
	return c
}

// certificateRequest returns a PKCS #10 request and its fresh key, in PEM. Whom
// it is for, the node says.
func certificateRequest() (request, key []byte, err error) {
	const op fault.Op = "creto.certificateRequest"
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fault.WrapAs(op, fault.CryptoInternal, err, "")
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, nil, fault.WrapAs(op, fault.CryptoInternal, err, "")
	}
	request, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, private)
	return request, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), fault.WrapAs(op, fault.CryptoInternal, err, "")
}

// writeSVID writes the three files, each as a whole, under the names that
// spiffe-helper gives them.
func writeSVID(dir string, svid client.X509SVID, key []byte) error {
	err := os.MkdirAll(dir, 0o700)
	for _, file := range []struct {
		name string
		data []byte
	}{{"svid_key.pem", key}, {"svid.pem", []byte(svid.Certificate)}, {"svid_bundle.pem", []byte(svid.Bundle)}} {
		if err == nil {
			err = replaceFile(filepath.Join(dir, file.name), file.data)
		}
	}
	return fault.WrapAs("creto.writeSVID", fault.Unavailable, err, "the files in %s cannot be written", dir)
}

// replaceFile writes a file that only its owner reads, in place of what was
// there, so that a reader sees the one or the other.
func replaceFile(path string, data []byte) error {
	next, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return err
	}
	_, err = next.Write(data)
	if err = errors.Join(err, next.Close()); err == nil {
		err = os.Rename(next.Name(), path)
	}
	if err != nil {
		err = errors.Join(err, os.Remove(next.Name()))
	}
	return err
}
