package service

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/api"
)

// issuer is an OpenID provider: its configuration, its keys, and tokens.
type issuer struct {
	*httptest.Server
	t     *testing.T
	keys  jose.JSONWebKeySet
	key   *ecdsa.PrivateKey
	down  atomic.Bool
	asked atomic.Int64 // for keys
}

func newIssuer(t *testing.T) *issuer {
	i := &issuer{t: t}
	i.rotate("first")
	i.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case i.down.Load():
			w.WriteHeader(http.StatusBadGateway)
		case r.URL.Path == "/keys":
			i.asked.Add(1)
			json.NewEncoder(w).Encode(i.keys)
		default:
			json.NewEncoder(w).Encode(map[string]any{"issuer": i.URL, "jwks_uri": i.URL + "/keys", "id_token_signing_alg_values_supported": []string{"ES256", "HS256", "none"}})
		}
	}))
	t.Cleanup(i.Close)
	return i
}

// rotate signs with another key from now on.
func (i *issuer) rotate(id string) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(i.t, err)
	i.key = key
	i.keys.Keys = []jose.JSONWebKey{{Key: key.Public(), KeyID: id, Algorithm: "ES256"}}
}

// claims returns those of a valid token, but for what change does to them.
func (i *issuer) claims(change func(map[string]any)) map[string]any {
	claims := map[string]any{"iss": i.URL, "aud": "refold", "sub": "ada", "exp": time.Now().Add(time.Hour).Unix(), "scope": "openid refold:append refold:query"}
	if change != nil {
		change(claims)
	}
	return claims
}

// token returns one that is valid but for what change does to its claims.
func (i *issuer) token(change func(map[string]any)) string {
	return sign(i.t, jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: i.key, KeyID: i.keys.Keys[0].KeyID}}, i.claims(change))
}

func sign(t *testing.T, key jose.SigningKey, claims any) string {
	signer, err := jose.NewSigner(key, nil)
	require.NoError(t, err)
	token, err := jwt.Signed(signer).Claims(claims).Serialize()
	require.NoError(t, err)
	return token
}

// guarded is an API behind a guard that is up.
func guarded(t *testing.T, i *issuer, claim string) (*guard, func(method, path, authorization string) *httptest.ResponseRecorder) {
	g, err := newGuard(API{Auth: "oidc", OIDCIssuer: i.URL, OIDCAudience: "refold", OIDCClaim: claim}, prometheus.NewRegistry())
	require.NoError(t, err)
	require.NoError(t, g.Start(t.Context(), nil))
	handler := g.wrap(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }), func() bool { return true })
	return g, func(method, path, authorization string) *httptest.ResponseRecorder {
		w, r := httptest.NewRecorder(), httptest.NewRequest(method, path, nil)
		if authorization != "" {
			r.Header.Set("Authorization", authorization)
		}
		handler.ServeHTTP(w, r)
		return w
	}
}

func TestOnlyValidTokensWithThePermissionPass(t *testing.T) {
	i := newIssuer(t)
	_, ask := guarded(t, i, "scope")
	other := newIssuer(t)
	set := func(name string, value any) func(map[string]any) {
		return func(claims map[string]any) { claims[name] = value }
	}
	public, err := x509.MarshalPKIXPublicKey(i.key.Public())
	require.NoError(t, err)
	for name, c := range map[string]struct {
		authorization string
		status        int
	}{
		"valid":             {"Bearer " + i.token(nil), http.StatusTeapot},
		"scheme":            {"bearer " + i.token(nil), http.StatusTeapot},
		"several audiences": {"Bearer " + i.token(set("aud", []string{"x", "refold"})), http.StatusTeapot},
		"a list":            {"Bearer " + i.token(set("scope", []string{"refold:append"})), http.StatusTeapot},
		"none":              {"", http.StatusUnauthorized},
		"basic":             {"Basic YTpi", http.StatusUnauthorized},
		"empty":             {"Bearer ", http.StatusUnauthorized},
		"garbage":           {"Bearer a.b.c", http.StatusUnauthorized},
		"expired":           {"Bearer " + i.token(set("exp", time.Now().Add(-time.Minute).Unix())), http.StatusUnauthorized},
		"never expires":     {"Bearer " + i.token(func(claims map[string]any) { delete(claims, "exp") }), http.StatusUnauthorized},
		"not yet":           {"Bearer " + i.token(set("nbf", time.Now().Add(time.Hour).Unix())), http.StatusUnauthorized},
		"other audience":    {"Bearer " + i.token(set("aud", "else")), http.StatusUnauthorized},
		"other issuer":      {"Bearer " + i.token(set("iss", "http://else")), http.StatusUnauthorized},
		"public key as secret": {"Bearer " + sign(t, jose.SigningKey{Algorithm: jose.HS256, Key: public}, map[string]any{"iss": i.URL, "aud": "refold",
			"exp": time.Now().Add(time.Hour).Unix(), "scope": "refold:append"}), http.StatusUnauthorized},
		"no permission":    {"Bearer " + i.token(set("scope", "refold:query")), http.StatusForbidden},
		"part of the word": {"Bearer " + i.token(set("scope", "refold:appendix")), http.StatusForbidden},
		"no claim":         {"Bearer " + i.token(func(claims map[string]any) { delete(claims, "scope") }), http.StatusForbidden},
		"odd claim":        {"Bearer " + i.token(set("scope", 7)), http.StatusForbidden},
	} {
		for range 2 { // a remembered one too
			w := ask("POST", "/v1/append", c.authorization)
			require.Equal(t, c.status, w.Code, "%s: %s", name, w.Body)
			if w.Code != http.StatusTeapot {
				require.Contains(t, w.Header().Get("WWW-Authenticate"), "Bearer", name)
			}
		}
	}
	forged := other.token(set("iss", i.URL)) // signed with a key of the same id
	require.NotEqual(t, http.StatusTeapot, ask("POST", "/v1/append", "Bearer "+forged).Code)
}

func TestARememberedTokenExpires(t *testing.T) {
	i := newIssuer(t)
	g, ask := guarded(t, i, "scope")
	token := i.token(nil)
	require.Equal(t, http.StatusTeapot, ask("POST", "/v1/append", "Bearer "+token).Code)
	for _, found := range g.known.All() {
		found.until = time.Now().Add(-time.Second)
	}
	require.Equal(t, http.StatusTeapot, ask("POST", "/v1/append", "Bearer "+token).Code)
	for _, found := range g.known.All() {
		require.True(t, found.until.After(time.Now()), "it was verified again")
	}
}

func TestPermissionsLieInAnyClaim(t *testing.T) {
	i := newIssuer(t)
	for claim, claims := range map[string]any{
		"realm_access.roles":  map[string]any{"realm_access": map[string]any{"roles": []string{"refold:append"}}},
		"https://x.org/roles": map[string]any{"https://x.org/roles": "refold:append"},
	} {
		_, ask := guarded(t, i, claim)
		token := i.token(func(all map[string]any) {
			delete(all, "scope")
			for name, value := range claims.(map[string]any) {
				all[name] = value
			}
		})
		require.Equal(t, http.StatusTeapot, ask("POST", "/v1/append", "Bearer "+token).Code, claim)
	}
}

// mayAsk ends the pause between two requests to the issuer.
func mayAsk(g *guard) {
	t := g.client.Transport.(*keysTransport)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last = nil
}

// An issuer that is down refuses nobody whose token can be checked, and lets
// nobody in whose cannot.
func TestTheGuardFailsClosed(t *testing.T) {
	i := newIssuer(t)
	g, ask := guarded(t, i, "scope")
	before := i.token(nil)
	require.Equal(t, http.StatusTeapot, ask("POST", "/v1/append", "Bearer "+before).Code)
	i.down.Store(true)
	i.rotate("second")
	after := i.token(nil)
	// The library shares a request for keys among all who come while it runs, and for a
	// moment after it: the outcome may be that of the request before.
	becomes := func(want int) (w *httptest.ResponseRecorder) {
		require.Eventually(t, func() bool {
			mayAsk(g)
			w = ask("POST", "/v1/append", "Bearer "+after)
			return w.Code == want
		}, time.Minute, time.Millisecond)
		return w
	}
	w := becomes(http.StatusServiceUnavailable)
	require.NotEmpty(t, w.Header().Get("Retry-After"))
	require.Equal(t, http.StatusTeapot, ask("POST", "/v1/append", "Bearer "+before).Code)

	i.down.Store(false)
	becomes(http.StatusTeapot)
	asked, began := i.asked.Load(), time.Now()
	for n := range 100 { // unknown key ids are no load on the issuer
		unknown := sign(t, jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: i.key, KeyID: fmt.Sprint("unknown ", n)}}, i.claims(nil))
		require.NotEqual(t, http.StatusTeapot, ask("POST", "/v1/append", "Bearer "+unknown).Code)
	}
	require.LessOrEqual(t, i.asked.Load()-asked, int64(time.Since(began)/keysPause)+1, "one in each pause")

	i.down.Store(true)
	closed, err := newGuard(g.api, prometheus.NewRegistry())
	require.NoError(t, err)
	require.True(t, waits(closed.Start(t.Context(), nil)), "the issuer may come up")
	w = httptest.NewRecorder()
	closed.wrap(nil, func() bool { return false }).ServeHTTP(w, httptest.NewRequest("GET", "/v1/categories", nil))
	require.Equal(t, http.StatusServiceUnavailable, w.Code)
}

// Every operation that is described has the permission that somebody decided on:
// one that is not in this table needs administration.
func TestEveryOperationHasItsPermission(t *testing.T) {
	w := httptest.NewRecorder()
	api.Document(w, nil)
	var document struct{ Paths map[string]map[string]any }
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &document))
	decided := map[string]string{
		"post /v1/streams/{category}/{id}/events":                                   PermitAppend,
		"post /v1/append":                                                           PermitAppend,
		"post /v1/commands/{category}/{id}/{command}":                               PermitAppend,
		"post /v1/read-models/{name}/query":                                         PermitQuery,
		"post /schema-registry/subjects/{subject}":                                  PermitQuery,
		"post /schema-registry/compatibility/subjects/{subject}/versions":           PermitQuery,
		"post /schema-registry/compatibility/subjects/{subject}/versions/{version}": PermitQuery,
	}
	for path, operations := range document.Paths {
		for method := range operations {
			if method == "parameters" {
				continue
			}
			want, ok := decided[method+" "+path]
			if !ok {
				if want = PermitAdmin; method == "get" {
					want = PermitQuery
				}
			}
			r, err := http.NewRequest(map[string]string{"get": "GET", "post": "POST", "put": "PUT", "delete": "DELETE"}[method], "http://x"+path, nil)
			require.NoError(t, err)
			require.Equal(t, want, permission(r), "%s %s", method, path)
		}
	}
	for path, want := range map[string]string{"GET /": PermitAdmin, "GET /v2/streams/a": PermitAdmin, "GET /v1/custom": PermitAdmin, "POST /v1/streamsx": PermitAdmin,
		"DELETE /v1/streams/a/b": PermitAdmin, "POST /v1/read-models/a/query/b": PermitAdmin, "HEAD /v1/categories": PermitQuery} {
		var method, target string
		fmt.Sscan(path, &method, &target)
		require.Equal(t, want, permission(httptest.NewRequest(method, target, nil)), path)
	}
}

func TestSettingsThatProtectNothingAreRefused(t *testing.T) {
	for want, a := range map[string]API{
		"--tls-key-file": {TLSCertFile: "x"},
		"needs":          {Auth: "oidc", OIDCIssuer: "http://x"},
		"no effect":      {Auth: "none", OIDCIssuer: "http://x"},
	} {
		require.ErrorContains(t, a.check(), want)
	}
	for addr, open := range map[string]bool{"127.0.0.1:1": false, "localhost:1": false, "[::1]:1": false, ":1": true, "0.0.0.0:1": true, "refold:1": true} {
		require.Equal(t, open, API{Addr: addr}.open(), addr)
		require.False(t, API{Addr: addr, Auth: "none"}.open(), addr)
	}
}

// A renewed certificate is served without a restart, and a broken one does not
// take the one before it away.
func TestTLSFollowsItsFiles(t *testing.T) {
	dir := t.TempDir()
	c := &certificate{certFile: filepath.Join(dir, "tls.crt"), keyFile: filepath.Join(dir, "tls.key"), log: slog.New(slog.DiscardHandler)}
	_, err := c.get(nil)
	require.ErrorContains(t, err, "tls.crt")
	writePair(t, dir, "one")

	s := &Service{Log: c.log, Health: &Health{}}
	addr, err := s.Serve("API server", "127.0.0.1:0", &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: c.get},
		http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Proto) }))
	require.NoError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	served := func() string {
		conn, err := tls.Dial("tcp", addr.String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
		require.NoError(t, err)
		defer conn.Close()
		require.Equal(t, "h2", conn.ConnectionState().NegotiatedProtocol)
		return conn.ConnectionState().PeerCertificates[0].Subject.CommonName
	}
	renewed := func(when time.Time) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.checked = time.Time{}
		require.NoError(t, os.Chtimes(c.certFile, when, when))
	}
	require.Equal(t, "one", served())
	writePair(t, dir, "two")
	require.Equal(t, "one", served(), "files are looked at once in a while")
	renewed(time.Now().Add(time.Hour))
	require.Equal(t, "two", served())
	require.NoError(t, os.WriteFile(c.certFile, []byte("broken"), 0o600))
	renewed(time.Now().Add(2 * time.Hour))
	require.Equal(t, "two", served())
	stop()
	require.NoError(t, <-done)
}

func writePair(t *testing.T, dir, name string) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "tls.crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "tls.key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
}
