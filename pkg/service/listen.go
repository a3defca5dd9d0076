package service

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"
)

// API is embedded by commands that serve an API, with the tag
// `embed:"" set:"api_port=8080"`: where, whether over TLS, and who may call it.
type API struct {
	Addr        string `help:"Where the API is served." default:"127.0.0.1:${api_port}"`
	TLSCertFile string `name:"tls-cert-file" help:"Certificate (PEM) to serve the API over TLS; read again when it changes." placeholder:"FILE"`
	TLSKeyFile  string `name:"tls-key-file" help:"Key (PEM) of the certificate." placeholder:"FILE"`

	Auth         string `help:"Who may call the API: none for everybody, oidc for bearer tokens of an issuer with refold:append, refold:query or refold:admin." enum:",none,oidc" default:"" placeholder:"none|oidc"`
	OIDCIssuer   string `name:"oidc-issuer" help:"Issuer of the tokens: the URL that /.well-known/openid-configuration lies below." placeholder:"URL"`
	OIDCAudience string `name:"oidc-audience" help:"Audience that tokens are made for." placeholder:"NAME"`
	OIDCClaim    string `name:"oidc-claim" help:"Claim that holds the permissions, a list or words: its name, or a path such as realm_access.roles." default:"scope"`
}

// check refuses what does not belong together, and settings that would look like
// protection and give none.
func (a API) check() error {
	oidc := a.OIDCIssuer != "" || a.OIDCAudience != ""
	switch {
	case (a.TLSCertFile == "") != (a.TLSKeyFile == ""):
		return errors.New("--tls-cert-file and --tls-key-file belong together: one of them is missing")
	case a.Auth == "oidc" && (a.OIDCIssuer == "" || a.OIDCAudience == ""):
		return errors.New("--auth=oidc needs --oidc-issuer and --oidc-audience")
	case a.Auth != "oidc" && oidc:
		return errors.New("--oidc-issuer and --oidc-audience have no effect without --auth=oidc")
	}
	return nil
}

// open tells whether strangers may reach the API and nobody said that they may.
func (a API) open() bool {
	if a.Auth != "" {
		return false
	}
	host, _, err := net.SplitHostPort(a.Addr)
	if err != nil || host == "localhost" {
		return false
	}
	ip := net.ParseIP(host)
	return ip == nil || !ip.IsLoopback()
}

// Handle has the API served when the host runs, by Mux with what is wrapped around
// it. It is called after the last component was added.
func (h *Host) Handle(a API) error {
	if err := a.check(); err != nil {
		return Usage(err)
	}
	if a.open() {
		h.Log.Warn("everybody who reaches the API may append, read and administer: set --auth=oidc, or --auth=none if something in front of it decides", "addr", a.Addr)
	}
	handler := h.trace(h.Mux)
	if a.Auth == "oidc" {
		g, err := newGuard(a, h.Registry)
		if err != nil {
			return err
		}
		h.Add(g)
		handler = g.wrap(handler, func() bool { return h.reason(g.Name()) == nil })
	}
	var config *tls.Config
	if a.TLSCertFile != "" {
		c := &certificate{certFile: a.TLSCertFile, keyFile: a.TLSKeyFile, log: h.Log}
		if _, err := c.get(nil); err != nil {
			return Usage(err)
		}
		config = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: c.get}
	}
	_, err := h.service.Serve("API server", a.Addr, config, handler)
	return err
}

// certificate is a pair of files that whoever renews certificates replaces.
type certificate struct {
	certFile, keyFile string
	log               *slog.Logger

	mu      sync.Mutex
	current *tls.Certificate
	checked time.Time
	stamps  [2]time.Time
}

// renewalPause bounds how often files are looked at, and how late a renewal is
// seen.
const renewalPause = 10 * time.Second

// get returns the certificate of the files. One that cannot be read leaves the
// one before it in use.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current != nil && time.Since(c.checked) < renewalPause {
		return c.current, nil
	}
	c.checked = time.Now()
	stamps := [2]time.Time{modified(c.certFile), modified(c.keyFile)}
	if c.current != nil && stamps == c.stamps {
		return c.current, nil
	}
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	switch {
	case err == nil:
		c.current, c.stamps = &pair, stamps
	case c.current == nil:
		return nil, fmt.Errorf("reading the certificate of the API: %w", err)
	default:
		c.log.Error("the renewed certificate cannot be read: the one before it stays", "file", c.certFile, "err", err)
	}
	return c.current, nil
}

func modified(file string) time.Time {
	info, err := os.Stat(file)
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}
