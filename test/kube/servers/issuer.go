package main

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"time"
)

// tokens are what the issuer has given out.
type tokens struct{ query, probe []byte }

// serveIssuer serves what an OpenID issuer tells those who check its tokens, on a
// port of the loopback interface, for as long as the process runs.
func serveIssuer(url string) (t tokens, port int, err error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return t, 0, fmt.Errorf("making the issuer's key: %w", err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return t, 0, fmt.Errorf("listening for the issuer: %w", err)
	}
	mux := http.NewServeMux()
	answer := func(path string, value any) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			json.NewEncoder(w).Encode(value) //nolint:errcheck // the client is gone
		})
	}
	answer("/.well-known/openid-configuration", map[string]any{"issuer": url, "jwks_uri": url + "/keys", "authorization_endpoint": url + "/none", "token_endpoint": url + "/none",
		"id_token_signing_alg_values_supported": []string{"RS256"}, "subject_types_supported": []string{"public"}, "response_types_supported": []string{"id_token"}})
	answer("/keys", map[string]any{"keys": []any{map[string]string{"kty": "RSA", "use": "sig", "alg": "RS256", "kid": "lab",
		"n": encode(key.N.Bytes()), "e": encode(big.NewInt(int64(key.E)).Bytes())}}})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go server.Serve(listener) //nolint:errcheck // it ends with the process

	if t.query, err = token(key, url, "refold:query"); err != nil {
		return t, 0, err
	}
	t.probe, err = token(key, url, "refold:query refold:append")
	return t, listener.Addr().(*net.TCPAddr).Port, err
}

func encode(raw []byte) string { return base64.RawURLEncoding.EncodeToString(raw) }

// token signs a token for the audience refold, valid for a day.
func token(key *rsa.PrivateKey, issuer, scope string) ([]byte, error) {
	claims, err := json.Marshal(map[string]any{"iss": issuer, "aud": "refold", "sub": "lab", "scope": scope,
		"iat": time.Now().Add(-time.Minute).Unix(), "exp": time.Now().Add(24 * time.Hour).Unix()})
	if err != nil {
		return nil, fmt.Errorf("writing a token: %w", err)
	}
	signed := encode([]byte(`{"alg":"RS256","kid":"lab","typ":"JWT"}`)) + "." + encode(claims)
	digest := sha256.Sum256([]byte(signed))
	signature, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, digest[:])
	if err != nil {
		return nil, fmt.Errorf("signing a token: %w", err)
	}
	return []byte(signed + "." + encode(signature)), nil
}
