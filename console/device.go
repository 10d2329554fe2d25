package console

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"

	"creto.dev/fault"
	"creto.dev/login"
)

// deviceStart is what a command line gets first (RFC 8628, section 3.2).
type deviceStart struct {
	DeviceCode      string `json:"device_code"`
	UserCode        string `json:"user_code"`
	URI             string `json:"verification_uri"`
	URIComplete     string `json:"verification_uri_complete"`
	ExpiresSeconds  int    `json:"expires_in"`
	IntervalSeconds int    `json:"interval"`
}

// deviceToken is what it gets in the end, or why not yet (RFC 8628, section
// 3.5).
type deviceToken struct {
	AccessToken    string `json:"access_token,omitempty"`
	TokenType      string `json:"token_type,omitempty"`
	ExpiresSeconds int    `json:"expires_in,omitempty"`
	// Expires is when the session ends.
	Expires time.Time `json:"expires,omitzero"`
	Error   string    `json:"error,omitempty"`
}

func (c *Console) deviceBegin(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxFormBytes)
	d, err := c.Devices.Begin(r.Context(), r.PostFormValue("client_id"))
	uri := c.origin + "/console/device"
	c.reply(w, r, deviceStart{
		DeviceCode: d.Code, UserCode: d.UserCode, URI: uri, URIComplete: uri + "?code=" + url.QueryEscape(d.UserCode),
		ExpiresSeconds: int(login.DeviceTTL.Seconds()), IntervalSeconds: int(login.DeviceInterval.Seconds()),
	}, err)
}

func (c *Console) deviceToken(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxFormBytes)
	token, expires, err := c.Devices.Token(r.Context(), r.PostFormValue("device_code"))
	var why string
	switch {
	case errors.Is(err, login.ErrDevicePending):
		why = "authorization_pending"
	case errors.Is(err, fault.PermissionDenied):
		why = "access_denied"
	case errors.Is(err, fault.NotFound):
		why = "expired_token"
	default:
		c.reply(w, r, deviceToken{AccessToken: token, TokenType: "Bearer", ExpiresSeconds: int(login.SessionTTL.Seconds()), Expires: expires}, err)
		return
	}
	c.answer(w, http.StatusBadRequest, deviceToken{Error: why})
}

// deviceEnd ends the session of a command line, which it sends as bearer: what
// a page of another site cannot do.
func (c *Console) deviceEnd(w http.ResponseWriter, r *http.Request) {
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	c.reply(w, r, struct{}{}, c.Sessions.End(r.Context(), token))
}

// devicePage is a command line that waits.
type devicePage struct {
	// Code is what it shows; "" asks for it.
	Code, Client string
	// Done is what became of it.
	Done string
}

func (c *Console) device(w http.ResponseWriter, r *http.Request, s login.Session) {
	view := devicePage{Code: r.FormValue("code")}
	if view.Code != "" {
		var err error
		if view.Client, err = c.Devices.Client(r.Context(), s.Human, view.Code); err != nil {
			c.fail(w, r, s, err)
			return
		}
	}
	c.render(w, r, http.StatusOK, "device.html", page{Title: "Command line", Session: s, Tab: "account", Data: view})
}

func (c *Console) answerDevice(w http.ResponseWriter, r *http.Request, s login.Session) {
	yes := r.PostFormValue("decision") == "approve"
	if err := c.Devices.Answer(r.Context(), s, r.PostFormValue("code"), yes); err != nil {
		c.fail(w, r, s, err)
		return
	}
	done := "It was refused."
	if yes {
		done = "The command line is logged in as " + s.Human.Name + ". You can close this page."
	}
	c.render(w, r, http.StatusOK, "device.html", page{Title: "Command line", Session: s, Tab: "account", Data: devicePage{Done: done}})
}
