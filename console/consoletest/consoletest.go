// Package consoletest is a person with a real browser, for tests: Chromium, with
// an authenticator for passkeys inside.
package consoletest

import (
	"context"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/webauthn"
	"github.com/chromedp/chromedp"
)

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

// Chromium returns the path of the browser's program. Without one it skips the
// test, or fails it if CRETO_TEST_REQUIRE is 1.
func Chromium(t testing.TB) string {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		if os.Getenv("CRETO_TEST_REQUIRE") == "1" {
			t.Fatal(err)
		}
		t.Skip("there is no chromium; install it with: apt-get install chromium")
	}
	return path
}

// Tab is a person's browser. Its authenticator has discoverable passkeys and
// answers at once (WebAuthn level 3, section 11). What fails, fails the test.
type Tab struct {
	t             testing.TB
	ctx           context.Context //nolint:containedctx // chromedp keeps the tab in it
	base          string
	authenticator webauthn.AuthenticatorID
}

// Open starts a browser for the console at base. It ends with the test.
func Open(t testing.TB, base string) *Tab {
	t.Helper()
	ctx, cancel := chromedp.NewExecAllocator(t.Context(), append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]),
		chromedp.ExecPath(Chromium(t)), chromedp.NoSandbox, chromedp.DisableGPU, chromedp.UserDataDir(t.TempDir()))...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	b := &Tab{t: t, ctx: ctx, base: base}
	if err := chromedp.Do(ctx, chromedp.Navigate(base+"/console/login")); err != nil { // no deadline: the browser would end with it
		t.Fatalf("the browser: %v", err)
	}
	if _, err := chromedp.Call(ctx, webauthn.Enable, webauthn.EnableParams{}); err != nil {
		t.Fatal(err)
	}
	added, err := chromedp.Call(ctx, webauthn.AddVirtualAuthenticator, webauthn.AddVirtualAuthenticatorParams{Options: &webauthn.VirtualAuthenticatorOptions{
		Protocol: webauthn.AuthenticatorProtocolCtap2, Transport: webauthn.AuthenticatorTransportInternal,
		HasResidentKey: true, HasUserVerification: true, IsUserVerified: true, AutomaticPresenceSimulation: true,
	}})
	if err != nil {
		t.Fatal(err)
	}
	b.authenticator = added.AuthenticatorID
	return b
}

// Do runs actions in the tab.
func (b *Tab) Do(actions ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		b.t.Fatalf("the browser: %v, at %s", err, b.Text())
	}
}

// Picture returns a PNG of the whole page.
func (b *Tab) Picture() []byte {
	b.t.Helper()
	picture, err := chromedp.Run(b.ctx, chromedp.FullScreenshot(100))
	if err != nil {
		b.t.Fatal(err)
	}
	return picture
}

// Text is what the page shows; "" while it changes.
func (b *Tab) Text() string {
	text, err := chromedp.Run(b.ctx, chromedp.Evaluate[string]("document.readyState === 'complete' ? document.body.innerText : ''"))
	if err != nil {
		return ""
	}
	return text
}

// Go opens a page: a path below the console's address, or a whole address.
func (b *Tab) Go(page string) {
	b.t.Helper()
	if strings.HasPrefix(page, "/") {
		page = b.base + page
	}
	b.Do(chromedp.Navigate(page))
}

// Press presses the button with a label, and waits until the page shows text.
func (b *Tab) Press(label, shows string) {
	b.t.Helper()
	b.Do(chromedp.Click(chromedp.Search(`//button[normalize-space()="` + label + `"]`)))
	b.Shows(shows)
}

// Shows waits until the page shows text.
func (b *Tab) Shows(text string) {
	b.t.Helper()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	deadline := time.After(patience)
	for !strings.Contains(b.Text(), text) {
		select {
		case <-deadline:
			b.t.Fatalf("the page does not show %q but:\n%s", text, b.Text())
		case <-ticker.C:
		}
	}
}

// Verify says whether the authenticator's user passes from now on.
func (b *Tab) Verify(passes bool) {
	b.t.Helper()
	if _, err := chromedp.Call(b.ctx, webauthn.SetUserVerified, webauthn.SetUserVerifiedParams{AuthenticatorID: b.authenticator, IsUserVerified: passes}); err != nil {
		b.t.Fatal(err)
	}
}

// Cookies returns the browser's cookies for the console, by name.
func (b *Tab) Cookies() map[string]*network.Cookie {
	b.t.Helper()
	result, err := chromedp.Call(b.ctx, network.GetCookies, network.GetCookiesParams{URLs: []string{b.base + "/console"}})
	if err != nil {
		b.t.Fatal(err)
	}
	found := make(map[string]*network.Cookie)
	for _, c := range result.Cookies {
		found[c.Name] = c
	}
	return found
}

// Enrol logs in by a one-time link, and adds a passkey.
func (b *Tab) Enrol(link string) {
	b.t.Helper()
	b.Go(link)
	b.Press("Log in", "Waiting for consent")
	b.Go("/console/account")
	b.Press("Add a passkey", "not used yet")
}
