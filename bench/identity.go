package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/biscuit-auth/biscuit-go/v2"
	"github.com/biscuit-auth/biscuit-go/v2/datalog"
	"github.com/biscuit-auth/biscuit-go/v2/parser"
	"github.com/cloudflare/circl/sign/mldsa/mldsa65"
	"github.com/go-jose/go-jose/v4"
	josejwt "github.com/go-jose/go-jose/v4/jwt" //nolint:importas // both peers call their package jwt
	"github.com/golang-jwt/jwt/v5"

	product "creto.dev"
	"creto.dev/nhi"
	"creto.dev/nhi/localnhi"
	"creto.dev/pqc"
	"creto.dev/pqc/localpqc"
)

// How often an operation is timed: signatures take a tenth of a millisecond.
const (
	signTimes = 3000
	coldTimes = 1000
)

// depthOfIdentity is how many links the chain has, from the human to the agent
// that acts.
const depthOfIdentity = 3

// benchIdentity measures who is this (a token), may it (a chain), and the
// signatures that both stand on.
func benchIdentity(ctx context.Context, r *report) error {
	h, err := build(ctx, 10, depthOfIdentity, false)
	if err != nil {
		return err
	}
	return errors.Join(benchTokens(ctx, r, h), benchChains(ctx, r, h), benchComposite(ctx, r), h.close())
}

// benchTokens compares Resolve with libraries that verify the same tokens.
func benchTokens(ctx context.Context, r *report, h *house) error {
	keys, err := h.authority.Keys(ctx, "platform")
	if err != nil {
		return err
	}
	var public ed25519.PublicKey
	for _, k := range keys {
		if k.Role == localnhi.RoleToken {
			public = k.Public
		}
	}
	agent := h.caller.Identity().ID
	// A tenth more warms up, and allocations are counted on others again.
	tokens := make([]string, coldTimes+coldTimes/10+1000+10)
	for i := range tokens {
		if tokens[i], _, err = h.authority.IssueToken(ctx, agent, localnhi.TokenRequest{}); err != nil {
			return err
		}
	}
	fresh := func() func() string {
		i := 0
		return func() string { i++; return tokens[i%len(tokens)] }
	}
	unseen, again, third := fresh(), fresh(), fresh()
	golang := func(token string) error {
		_, err := jwt.NewParser(jwt.WithValidMethods([]string{"EdDSA"}), jwt.WithAudience(localnhi.Audience), jwt.WithExpirationRequired()).
			Parse(token, func(*jwt.Token) (any, error) { return public, nil })
		return err
	}
	joses := func(token string) error {
		parsed, err := josejwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.EdDSA})
		if err != nil {
			return err
		}
		var claims josejwt.Claims
		var own struct {
			Epoch uint64         `json:"epoch"`
			Chain product.Digest `json:"chain"`
		}
		if err := parsed.Claims(public, &claims, &own); err != nil {
			return err
		}
		return claims.Validate(josejwt.Expected{AnyAudience: josejwt.Audience{localnhi.Audience}})
	}
	resolve := func(token string) error {
		_, err := h.authority.Resolve(ctx, nhi.Credential{Token: token})
		return err
	}
	return measureAll(ctx, r, []bench{
		{name: "resolve/warm", who: creto, n: hotTimes, note: "budget 1 µs, 0 allocations; expiry and revocation checked", do: func() error { return resolve(h.token) }},
		{name: "resolve/warm", who: "golang-jwt", n: signTimes, note: "a library keeps no memory: verifies anew; knows no revocation", do: func() error { return golang(h.token) }},
		{name: "resolve/warm", who: "go-jose", n: signTimes, note: "likewise", do: func() error { return joses(h.token) }},
		{name: "resolve/cold", who: creto, n: coldTimes, note: "each token for the first time", do: func() error { return resolve(unseen()) }},
		{name: "resolve/cold", who: "golang-jwt", n: coldTimes, do: func() error { return golang(again()) }},
		{name: "resolve/cold", who: "go-jose", n: coldTimes, do: func() error { return joses(third()) }},
	})
}

// benchChains compares a chain's verification with its signatures alone, and
// with a biscuit of as many blocks.
func benchChains(ctx context.Context, r *report, h *house) error {
	p := localpqc.New()
	links, err := h.authority.DelegationChain(ctx, h.caller.Identity().ID)
	if err != nil {
		return err
	}
	roots, err := h.authority.Roots(ctx)
	if err != nil {
		return err
	}
	stamp, err := h.clock.Now(ctx)
	if err != nil {
		return err
	}
	now := stamp.Time()
	verifier := nhi.NewVerifier(p, 0)
	name := fmt.Sprintf("chain=%d", len(links))
	token, root, err := biscuitOf(len(links))
	if err != nil {
		return err
	}
	verifyBiscuit := func() error {
		b, err := biscuit.Unmarshal(token)
		if err != nil {
			return err
		}
		// Its limit of 2 ms is reached when the machine is busy.
		a, err := b.Authorizer(root, biscuit.WithWorldOptions(datalog.WithMaxDuration(time.Minute)))
		if err != nil {
			return err
		}
		a.AddFact(biscuit.Fact{Predicate: biscuit.Predicate{Name: "operation", IDs: []biscuit.Term{biscuit.String("call_model")}}})
		a.AddPolicy(biscuit.DefaultAllowPolicy)
		return a.Authorize()
	}
	// Cold means that neither the chain nor its keys were seen before.
	cold, err := coldChains(p, len(links), now)
	if err != nil {
		return err
	}
	next := func() func() coldChain {
		i := 0
		return func() coldChain { i++; return cold[i%len(cold)] }
	}
	ours, theirs := next(), next()
	return measureAll(ctx, r, []bench{
		{name: name + "/warm", who: creto, n: manyTimes, note: "budget 10 µs; compared byte for byte, expiry and revocation checked", do: func() error {
			_, err := verifier.Verify(ctx, links, roots, now, h.authority)
			return err
		}},
		{name: name + "/warm", who: "biscuit-go", n: signTimes, note: "keeps no memory; Ed25519 alone, and its own checks evaluated", do: verifyBiscuit},
		{name: name + "/cold", who: creto, n: signTimes, note: "budget 1.1 of its signatures, ML-DSA-65 and Ed25519 each; side by side on the cores there are", do: func() error {
			c := ours()
			_, err := nhi.VerifyDelegation(ctx, c.links, c.signers[:1], p, now, nil)
			return err
		}},
		{name: name + "/cold", who: "signatures", n: signTimes, note: "the same composite signatures verified one after the other, and nothing else", do: func() error {
			c := theirs()
			for i, link := range c.links {
				if err := p.Verify(pqc.PurposeDelegation, link.Body, link.Signature, c.signers[i]); err != nil {
					return err
				}
			}
			return nil
		}},
		{name: name + "/cold", who: "biscuit-go", n: signTimes, note: "Ed25519 alone: no post-quantum signature", do: verifyBiscuit},
	})
}

// coldChain is a chain and who signed each link.
type coldChain struct {
	links   []nhi.SignedLink
	signers []pqc.PublicKey
}

// coldTotal is how many chains are verified in turn: more than a provider keeps
// keys of.
const coldTotal = 300

// coldChains returns chains of n links that have no key in common.
func coldChains(p pqc.Provider, n int, at time.Time) ([]coldChain, error) {
	id := func(kind product.Kind, name string) product.ID {
		return product.ID{TrustDomain: "bench.local", Tenant: product.DefaultTenant, Kind: kind, Name: name}
	}
	chains := make([]coldChain, coldTotal)
	for i := range chains {
		c := &chains[i]
		var keys []pqc.SigningKey
		for range n + 1 {
			key, err := p.GenerateSigningKey(pqc.MLDSA65Ed25519)
			if err != nil {
				return nil, err
			}
			public, err := p.Public(key)
			if err != nil {
				return nil, err
			}
			keys, c.signers = append(keys, key), append(c.signers, public)
		}
		link := nhi.Link{
			Issuer: id(product.KindHuman, "alice"), Scope: nhi.Everything(), NotBefore: at.Unix(), NotAfter: at.Add(time.Hour).Unix(),
			MaxDepth: uint(n), Proof: nhi.Proof{Kind: nhi.ProofBootstrap},
		}
		for j, name := range agentsOf(n) {
			link.Subject, link.SubjectKey, link.Nonce = id(product.KindAgent, name), c.signers[j+1], product.NewUUID()
			signed, err := nhi.SignLink(p, keys[j], link)
			if err != nil {
				return nil, err
			}
			c.links = append(c.links, signed)
			link.Issuer, link.Parent, link.Proof, link.MaxDepth = link.Subject, signed.Digest(), nhi.Proof{}, link.MaxDepth-1
		}
	}
	return chains, nil
}

// biscuitOf returns a biscuit of n blocks, each narrower than the one before.
func biscuitOf(n int) ([]byte, ed25519.PublicKey, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	authority, err := parser.FromStringBlock(`right("alice", "call_model"); right("alice", "http_request");`)
	if err != nil {
		return nil, nil, err
	}
	builder := biscuit.NewBuilder(private)
	if err := builder.AddBlock(authority); err != nil {
		return nil, nil, err
	}
	token, err := builder.Build()
	if err != nil {
		return nil, nil, err
	}
	for range n - 1 {
		narrower, err := parser.FromStringBlock(`check if operation("call_model");`)
		if err != nil {
			return nil, nil, err
		}
		block := token.CreateBlock()
		if err := block.AddBlock(narrower); err != nil {
			return nil, nil, err
		}
		if token, err = token.Append(rand.Reader, block.Build()); err != nil {
			return nil, nil, err
		}
	}
	data, err := token.Serialize()
	return data, public, err
}

// benchComposite compares a composite signature with its two halves, keys parsed
// before.
func benchComposite(ctx context.Context, r *report) error {
	p := localpqc.New()
	key, err := p.GenerateSigningKey(pqc.MLDSA65Ed25519)
	if err != nil {
		return err
	}
	public, err := p.Public(key)
	if err != nil {
		return err
	}
	// As a link has. Signing tries again a number of times that depends on what
	// is signed, so that each signature is of another message.
	message := make([]byte, 2300)
	count, varied := uint64(0), make([]byte, len(message))
	another := func() []byte {
		count++
		return binary.BigEndian.AppendUint64(varied[:len(varied)-8], count)
	}
	sig, err := p.Sign(pqc.PurposeDelegation, message, key)
	if err != nil {
		return err
	}
	pqPublic, pqPrivate := mldsa65.NewKeyFromSeed((*[mldsa65.SeedSize]byte)(key.Seed))
	private := ed25519.NewKeyFromSeed(key.Seed[mldsa65.SeedSize:])
	classical := private.Public().(ed25519.PublicKey)
	digest := sha512.Sum512(message)
	label := []byte("COMPSIG-MLDSA65-Ed25519-SHA512")
	half := make([]byte, mldsa65.SignatureSize)
	sign := func(message []byte) ([]byte, error) {
		digest = sha512.Sum512(message)
		if err := mldsa65.SignTo(pqPrivate, digest[:], label, false, half); err != nil {
			return nil, err
		}
		return ed25519.Sign(private, digest[:]), nil
	}
	other, err := sign(message)
	if err != nil {
		return err
	}
	signed := slices.Clone(half)
	return measureAll(ctx, r, []bench{
		{name: "composite/sign", who: creto, n: signTimes, note: "budget 1.1 of its primitives", do: func() error {
			_, err := p.Sign(pqc.PurposeDelegation, another(), key)
			return err
		}},
		{name: "composite/sign", who: "primitives", n: signTimes, note: "circl's ML-DSA-65, Ed25519 and SHA-512", do: func() error { _, err := sign(another()); return err }},
		{name: "composite/verify", who: creto, n: signTimes, note: "budget 1.1 of its primitives", do: func() error {
			return p.Verify(pqc.PurposeDelegation, message, sig, public)
		}},
		{name: "composite/verify", who: "primitives", n: signTimes, note: "keys parsed before", do: func() error {
			digest := sha512.Sum512(message)
			if !mldsa65.Verify(pqPublic, digest[:], label, signed) || !ed25519.Verify(classical, digest[:], other) {
				return errors.New("does not verify")
			}
			return nil
		}},
		{name: "composite/generate", who: creto, n: coldTimes, do: func() error { _, err := p.GenerateSigningKey(pqc.MLDSA65Ed25519); return err }},
	})
}
