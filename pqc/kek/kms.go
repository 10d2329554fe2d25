package kek

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"time"

	"github.com/hashicorp/vault/api"
	"gocloud.dev/secrets"
	"gocloud.dev/secrets/hashivault"
	"gocloud.dev/secrets/localsecrets"

	"creto.dev/fault"
	"creto.dev/internal/canon"
	"creto.dev/pqc"
)

// keepers are the services by the scheme of their URL (docs/decisions.md says why
// these).
var keepers = map[string]func(context.Context, *url.URL) (*secrets.Keeper, error){
	hashivault.Scheme:   openVault,
	localsecrets.Scheme: new(localsecrets.URLOpener).OpenKeeperURL,
}

// vaultTimeout is the patience with one request, where VAULT_CLIENT_TIMEOUT does
// not say. A start makes one, and repeats it twice if the server fails.
const vaultTimeout = 10 * time.Second

// openVault opens a key of Vault's transit engine as Vault's own client is told to:
// by VAULT_ADDR, VAULT_TOKEN, VAULT_NAMESPACE, VAULT_CACERT and so on.
func openVault(ctx context.Context, u *url.URL) (*secrets.Keeper, error) {
	const op fault.Op = "kek.openVault"
	cfg := api.DefaultConfig()
	if cfg.Error != nil {
		return nil, fault.WrapAs(op, fault.InvalidArgument, cfg.Error, "the environment (VAULT_ADDR, VAULT_CACERT …) is not what Vault's client takes")
	}
	if os.Getenv(api.EnvVaultClientTimeout) == "" {
		cfg.Timeout = vaultTimeout
	}
	cfg.DisableRedirects = true // from here to another machine, in clear
	client, err := api.NewClient(cfg)
	if err != nil {
		return nil, err
	}
	// The key itself travels in the answer.
	address, err := url.Parse(client.Address())
	if err != nil {
		return nil, fault.New(op, fault.InvalidArgument, "VAULT_ADDR is no URL") // it may hold a password
	}
	if address.Scheme == "http" && !loopback(address.Hostname()) {
		return nil, fault.New(op, fault.InvalidArgument, "VAULT_ADDR is http://%s, where others can read the key-encryption key on its way; use https://", address.Host)
	}
	return (&hashivault.URLOpener{Client: client}).OpenKeeperURL(ctx, u)
}

func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// content is what a KMS encrypts: it takes no associated data, so the key's name
// goes in with it.
type content struct {
	Version uint      `cbor:"1,keyasint"`
	Key     pqc.KeyID `cbor:"2,keyasint"`
	Bytes   []byte    `cbor:"3,keyasint"`
}

func wrapWithKMS(ctx context.Context, cfg Config, key pqc.SymmetricKey) ([]byte, error) {
	const op fault.Op = "kek.wrapWithKMS"
	plaintext, err := canon.Marshal(content{fileVersion, key.ID, key.Bytes})
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	wrapped, err := useKMS(ctx, cfg, func(k *secrets.Keeper) ([]byte, error) { return k.Encrypt(ctx, plaintext) })
	switch {
	case misconfigured(err):
		return nil, fault.Wrap(op, err)
	case err != nil:
		return nil, fault.WrapAs(op, kmsCode(err), err, "the KMS does not wrap the key-encryption key (%s); check keys.kms_url and its credentials", kmsReason(err))
	}
	return canon.Marshal(file{Version: fileVersion, Source: SourceKMS, Key: key.ID, Wrapped: wrapped})
}

func unwrapWithKMS(ctx context.Context, cfg Config, f file, path string) ([]byte, error) {
	const op fault.Op = "kek.unwrapWithKMS"
	plaintext, err := useKMS(ctx, cfg, func(k *secrets.Keeper) ([]byte, error) { return k.Decrypt(ctx, f.Wrapped) })
	switch {
	case misconfigured(err):
		return nil, fault.Wrap(op, err)
	case err != nil && kmsCode(err) == fault.Unavailable:
		return nil, fault.WrapAs(op, fault.Unavailable, err, "the KMS cannot open the key-encryption key %s now (%s); see that it runs and that this machine reaches it", path, kmsReason(err))
	case err != nil:
		return nil, notOpened(op, err, "the KMS does not open the key-encryption key %s (%s); check that keys.kms_url names the key it was wrapped with, and the credentials", path, kmsReason(err))
	}
	var c content
	if err := canon.Unmarshal(plaintext, &c); err != nil || c.Version != fileVersion || c.Key != f.Key {
		return nil, notOpened(op, err, "the KMS opens something else than the key-encryption key %s; check that keys.kms_url names the key it was wrapped with", path)
	}
	return c.Bytes, nil
}

// errAnswer is an answer that the KMS's driver cannot read.
var errAnswer = errors.New("its answer makes no sense; one that leads elsewhere, as a standby does, is not followed")

// useKMS calls use with the configured service.
func useKMS(ctx context.Context, cfg Config, use func(*secrets.Keeper) ([]byte, error)) (data []byte, err error) {
	u, text := cfg.keeperURL()
	if text != "" {
		return nil, fault.New("kek.useKMS", fault.InvalidArgument, "kms_url %s", text)
	}
	keeper, err := keepers[u.Scheme](ctx, u)
	if err != nil {
		return nil, err
	}
	defer func() {
		// The drivers assert the types of what they are answered.
		if recover() != nil {
			data, err = nil, errAnswer
		}
		err = errors.Join(err, keeper.Close())
	}()
	return use(keeper)
}

// misconfigured reports whether err says itself what to do.
func misconfigured(err error) bool { return fault.CodeOf(err) == fault.InvalidArgument }

// kmsCode is Unavailable for what may pass by itself, else FailedPrecondition.
func kmsCode(err error) fault.Code {
	if answer, ok := errors.AsType[*api.ResponseError](err); ok {
		if answer.StatusCode >= http.StatusInternalServerError || answer.StatusCode == http.StatusTooManyRequests {
			return fault.Unavailable
		}
		return fault.FailedPrecondition
	}
	_, network := errors.AsType[net.Error](err)
	if network || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fault.Unavailable
	}
	return fault.FailedPrecondition
}

// kmsReason returns what a person may be told of err: nothing that quotes a URL.
func kmsReason(err error) string {
	if answer, ok := errors.AsType[*api.ResponseError](err); ok {
		return fmt.Sprintf("it answers %d %s", answer.StatusCode, http.StatusText(answer.StatusCode))
	}
	if kmsCode(err) == fault.Unavailable {
		return "it cannot be reached"
	}
	if errors.Is(err, errAnswer) {
		return errAnswer.Error()
	}
	return "it refuses"
}
