package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReadMailbox(t *testing.T) {
	letters, err := readMailbox("../mailbox")
	if err != nil {
		t.Fatal(err)
	}
	if len(letters) != 12 {
		t.Fatalf("%d mails, want 12", len(letters))
	}
	const want = "Mail: 04-invoice-copy\n" +
		"From: François Béranger <francois.beranger@example.com>\n" +
		"Subject: Facture pour la commande 1004\n" +
		"Date: Mon, 19 Oct 2026 08:34:55 +0200\n\n" +
		"Bonjour,\n\n" +
		"I cannot find the invoice of order 1004 (six plates, délivrées in September).\n" +
		"Could you send me a copy for my accountant?\n\n" +
		"Bien cordialement\nFrançois Béranger\n"
	if got := letters[3].prompt(); got != want {
		t.Errorf("prompt = %q, want %q", got, want)
	}
	for i, l := range letters {
		if !strings.Contains(l.From, "@") || l.Subject == "" || l.Body == "" {
			t.Errorf("mail %d = %+v, want sender, subject and body", i, l)
		}
	}
}

func TestReadLetter(t *testing.T) {
	tests := []struct {
		name, mail, wantBody, wantErr string
	}{
		{"plain", "From: a@example.com\nSubject: x\n\nhello\n", "hello", ""},
		{"base64", "From: a@example.com\nContent-Transfer-Encoding: base64\n\naGVsbG8=\n", "hello", ""},
		{"no sender", "Subject: x\n\nhello\n", "", "from:"},
		{"html", "From: a@example.com\nContent-Type: text/html\n\n<p>\n", "", "not text/plain"},
		{"uuencode", "From: a@example.com\nContent-Transfer-Encoding: uuencode\n\nx\n", "", "not known"},
		{"no mail", "hello", "", "malformed"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "x.eml")
			if err := os.WriteFile(file, []byte(tt.mail), 0o600); err != nil {
				t.Fatal(err)
			}
			l, err := readLetter(file)
			if tt.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tt.wantErr) {
					t.Errorf("readLetter = %v, want an error that contains %q", err, tt.wantErr)
				}
				return
			}
			if err != nil || l.Body != tt.wantBody {
				t.Errorf("readLetter = %q, %v; want %q", l.Body, err, tt.wantBody)
			}
		})
	}
}
