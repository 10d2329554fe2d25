package main

import (
	"encoding/base64"
	"fmt"
	"io"
	"mime"
	"mime/quotedprintable"
	"net/mail"
	"os"
	"path/filepath"
	"strings"
)

// letter is one mail of the mailbox.
type letter struct {
	ID      string // the file's name without .eml
	From    string // a name and address, as in "Carla Rossi <carla@example.com>"
	Subject string
	Date    string
	Body    string
}

// readMailbox reads dir/*.eml in the order of their names.
func readMailbox(dir string) ([]letter, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.eml"))
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("there is no mail in %s", dir)
	}
	letters := make([]letter, len(files)) // Glob sorts
	for i, file := range files {
		if letters[i], err = readLetter(file); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
	}
	return letters, nil
}

// readLetter reads a plain-text mail (RFC 5322, with RFC 2047 headers).
func readLetter(file string) (letter, error) {
	f, err := os.Open(file)
	if err != nil {
		return letter{}, err
	}
	defer f.Close()
	m, err := mail.ReadMessage(f)
	if err != nil {
		return letter{}, err
	}
	from, err := m.Header.AddressList("From")
	if err != nil {
		return letter{}, fmt.Errorf("from: %w", err)
	}
	var words mime.WordDecoder
	subject, err := words.DecodeHeader(m.Header.Get("Subject"))
	if err != nil {
		return letter{}, fmt.Errorf("subject: %w", err)
	}
	body, err := readBody(m)
	if err != nil {
		return letter{}, err
	}
	return letter{
		ID:      strings.TrimSuffix(filepath.Base(file), ".eml"),
		From:    strings.TrimSpace(from[0].Name + " <" + from[0].Address + ">"),
		Subject: subject,
		Date:    m.Header.Get("Date"),
		Body:    body,
	}, nil
}

// readBody decodes the body of a mail, which must be plain text.
func readBody(m *mail.Message) (string, error) {
	if contentType := m.Header.Get("Content-Type"); contentType != "" {
		mediaType, _, err := mime.ParseMediaType(contentType)
		if err != nil || mediaType != "text/plain" {
			return "", fmt.Errorf("content type %q is not text/plain", contentType)
		}
	}
	body := m.Body
	switch encoding := strings.ToLower(m.Header.Get("Content-Transfer-Encoding")); encoding {
	case "", "7bit", "8bit", "binary":
	case "quoted-printable":
		body = quotedprintable.NewReader(body)
	case "base64":
		body = base64.NewDecoder(base64.StdEncoding, body)
	default:
		return "", fmt.Errorf("transfer encoding %q is not known", encoding)
	}
	text, err := io.ReadAll(body)
	return strings.TrimSpace(string(text)), err
}

// prompt is how the model sees the mail.
func (l letter) prompt() string {
	return fmt.Sprintf("Mail: %s\nFrom: %s\nSubject: %s\nDate: %s\n\n%s\n", l.ID, l.From, l.Subject, l.Date, l.Body)
}
