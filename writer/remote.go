package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/refoldhq/refold/pkg/service"
)

// remote is embedded by commands that are clients of an API.
type remote struct {
	TokenFile string `help:"File with a bearer token that may do what the command does, for APIs with --auth=oidc." type:"existingfile" placeholder:"FILE"`
	CAFile    string `name:"ca-file" help:"Certificates (PEM) by which APIs are trusted." type:"existingfile" placeholder:"FILE"`
}

// client returns one that trusts --ca-file. A timeout of 0 is none.
func (c *remote) client(timeout time.Duration) (*http.Client, error) {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	if c.CAFile != "" {
		raw, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("reading --ca-file: %w", err)
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(raw) {
			return nil, service.Usage(fmt.Errorf("--ca-file: %s holds no certificate", c.CAFile))
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	}
	return &http.Client{Transport: transport, Timeout: timeout}, nil
}

// authorize adds the token, if there is one. It is read each time: tokens are
// renewed while a command runs.
func (c *remote) authorize(r *http.Request) error {
	if c.TokenFile == "" {
		return nil
	}
	raw, err := os.ReadFile(c.TokenFile)
	if err != nil {
		return fmt.Errorf("reading --token-file: %w", err)
	}
	r.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(raw)))
	return nil
}

// refused is an answer that is no success.
type refused struct {
	status int
	body   string
}

func (e *refused) Error() string { return fmt.Sprintf("status %d: %s", e.status, e.body) }
