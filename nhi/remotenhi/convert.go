package remotenhi

import (
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"creto.dev"
	nhiv1 "creto.dev/internal/gen/creto/nhi/v1"
	pqcv1 "creto.dev/internal/gen/creto/pqc/v1"
	"creto.dev/nhi"
	"creto.dev/pqc"
)

// Everything crosses as it is, wrong things too: it is the authority that refuses
// them.

func idOf(id creto.ID) *nhiv1.ID {
	return &nhiv1.ID{TrustDomain: id.TrustDomain, Tenant: id.Tenant, Kind: string(id.Kind), Name: id.Name}
}

func idFrom(id *nhiv1.ID) creto.ID {
	return creto.ID{TrustDomain: id.GetTrustDomain(), Tenant: id.GetTenant(), Kind: creto.Kind(id.GetKind()), Name: id.GetName()}
}

// digestFrom reads 32 bytes; anything else is the zero digest, which names
// nothing.
func digestFrom(b []byte) (d [32]byte) {
	if len(b) == len(d) {
		copy(d[:], b)
	}
	return d
}

func timeOf(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func timeFrom(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}

func credentialOf(c nhi.Credential) *nhiv1.Credential {
	out := &nhiv1.Credential{Token: c.Token, Dpop: c.DPoP, Method: c.Method, Url: c.URL}
	if c.Certificate != [32]byte{} {
		out.Certificate = c.Certificate[:]
	}
	return out
}

func credentialFrom(c *nhiv1.Credential) nhi.Credential {
	return nhi.Credential{Token: c.GetToken(), DPoP: c.GetDpop(), Method: c.GetMethod(), URL: c.GetUrl(), Certificate: digestFrom(c.GetCertificate())}
}

func identityOf(who nhi.Identity) *nhiv1.Identity {
	return &nhiv1.Identity{
		Id: idOf(who.ID), Human: idOf(who.Human), Instance: who.Instance, TokenId: who.TokenID, Chain: who.Chain[:], Epoch: who.Epoch,
		Sandbox: who.Sandbox, ConfirmationJkt: who.Confirmation.JKT, ConfirmationX5T: who.Confirmation.X5T, ExpiresAt: timeOf(who.ExpiresAt),
	}
}

func identityFrom(who *nhiv1.Identity) nhi.Identity {
	return nhi.Identity{
		ID: idFrom(who.GetId()), Human: idFrom(who.GetHuman()), Instance: who.GetInstance(), TokenID: who.GetTokenId(),
		Chain: digestFrom(who.GetChain()), Epoch: who.GetEpoch(), Sandbox: who.GetSandbox(),
		Confirmation: nhi.Confirmation{JKT: who.GetConfirmationJkt(), X5T: who.GetConfirmationX5T()}, ExpiresAt: timeFrom(who.GetExpiresAt()),
	}
}

func linkRefOf(r nhi.LinkRef) *nhiv1.LinkRef {
	return &nhiv1.LinkRef{Digest: r.Digest[:], Issuer: idOf(r.Issuer), Subject: idOf(r.Subject), IssuerEpoch: r.IssuerEpoch, SubjectEpoch: r.SubjectEpoch}
}

func linkRefFrom(r *nhiv1.LinkRef) nhi.LinkRef {
	return nhi.LinkRef{
		Digest: digestFrom(r.GetDigest()), Issuer: idFrom(r.GetIssuer()), Subject: idFrom(r.GetSubject()),
		IssuerEpoch: r.GetIssuerEpoch(), SubjectEpoch: r.GetSubjectEpoch(),
	}
}

func signedLinkOf(l nhi.SignedLink) *nhiv1.SignedLink {
	return &nhiv1.SignedLink{Body: l.Body, Signature: signatureOf(l.Signature)}
}

func signedLinkFrom(l *nhiv1.SignedLink) nhi.SignedLink {
	return nhi.SignedLink{Body: l.GetBody(), Signature: signatureFrom(l.GetSignature())}
}

func signatureOf(s pqc.Signature) *pqcv1.Signature {
	return &pqcv1.Signature{Algorithm: string(s.Algorithm), Bytes: s.Bytes, Key: string(s.Key)}
}

func signatureFrom(s *pqcv1.Signature) pqc.Signature {
	return pqc.Signature{Algorithm: pqc.Algorithm(s.GetAlgorithm()), Bytes: s.GetBytes(), Key: pqc.KeyID(s.GetKey())}
}

func publicOf(k pqc.PublicKey) *pqcv1.PublicKey {
	return &pqcv1.PublicKey{Algorithm: string(k.Algorithm), Id: string(k.ID), Bytes: k.Bytes}
}

// publicFrom derives the id: one that is not read cannot be wrong.
func publicFrom(k *pqcv1.PublicKey) pqc.PublicKey {
	return pqc.NewPublicKey(pqc.Algorithm(k.GetAlgorithm()), k.GetBytes())
}

func keyOf(k nhi.Key) *nhiv1.Key {
	return &nhiv1.Key{Public: publicOf(k.Public), NotBefore: timeOf(k.NotBefore), NotAfter: timeOf(k.NotAfter)}
}

func keyFrom(k *nhiv1.Key) nhi.Key {
	return nhi.Key{Public: publicFrom(k.GetPublic()), NotBefore: timeFrom(k.GetNotBefore()), NotAfter: timeFrom(k.GetNotAfter())}
}

func publicKeysOf(k nhi.PublicKeys) *nhiv1.PublicKeysResponse {
	return &nhiv1.PublicKeysResponse{
		Signing:    each(k.Signing, keyOf),
		Encryption: &pqcv1.EncapsulationKey{Algorithm: string(k.Encryption.Algorithm), Id: string(k.Encryption.ID), Bytes: k.Encryption.Bytes},
	}
}

func publicKeysFrom(k *nhiv1.PublicKeysResponse) nhi.PublicKeys {
	return nhi.PublicKeys{
		Signing:    each(k.GetSigning(), keyFrom),
		Encryption: pqc.NewEncapsulationKey(pqc.Algorithm(k.GetEncryption().GetAlgorithm()), k.GetEncryption().GetBytes()),
	}
}

// each converts a list; an empty one is nil.
func each[A, B any](list []A, convert func(A) B) []B {
	if len(list) == 0 {
		return nil
	}
	out := make([]B, len(list))
	for i, a := range list {
		out[i] = convert(a)
	}
	return out
}
