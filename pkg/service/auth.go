package service

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/maypok86/otter/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/refoldhq/refold/pkg/problem"
)

// The permissions of the API. None of them contains another: who may do all has
// all of them.
const (
	PermitAppend = "refold:append" // events and commands
	PermitQuery  = "refold:query"  // everything that only reads
	PermitAdmin  = "refold:admin"  // rebuilds, parked streams, schemas
)

// permission returns what a request needs. What is not listed needs
// administration: a new route is closed until somebody decides.
func permission(r *http.Request) string {
	path := strings.Split(strings.TrimPrefix(r.URL.Path, "/"), "/")
	at := func(i int) string {
		if i < len(path) {
			return path[i]
		}
		return ""
	}
	reads := r.Method == http.MethodGet || r.Method == http.MethodHead
	switch {
	case at(0) == "openapi.json" && reads:
		return PermitQuery
	case at(0) == "schema-registry":
		lookup := r.Method == http.MethodPost && (at(1) == "compatibility" || at(1) == "subjects" && len(path) == 3)
		if reads || lookup {
			return PermitQuery
		}
	case at(0) != "v1":
	case reads && slices.Contains(readable[:], at(1)):
		return PermitQuery
	case r.Method != http.MethodPost:
	case at(1) == "append", at(1) == "streams", at(1) == "commands":
		return PermitAppend
	case at(1) == "read-models" && at(3) == "query" && len(path) == 4:
		return PermitQuery
	}
	return PermitAdmin
}

// readable are the resources that may be read with [PermitQuery].
var readable = [...]string{"streams", "events", "categories", "read-models", "aggregates", "commands", "projections", "rebuilds", "reactions"}

// guard lets requests through that bring a token of the issuer with the
// permission they need. It is a component: it is up once the issuer was reached.
type guard struct {
	api     API
	client  *http.Client
	refused *prometheus.CounterVec

	verifier *oidc.IDTokenVerifier
	known    *otter.Cache[[sha256.Size]byte, *grant]
}

// grant is what a verified token allows.
type grant struct {
	permissions []string
	until       time.Time
}

const (
	knownTokens   = 10_000           // verified tokens that are remembered
	issuerTimeout = 5 * time.Second  // for one request to the issuer
	keysPause     = time.Second      // between two requests for keys: unknown key ids must not become load on the issuer
	rememberedFor = 10 * time.Minute // at most, however long a token lives
)

func newGuard(api API, reg prometheus.Registerer) (*guard, error) {
	known, err := otter.New(&otter.Options[[sha256.Size]byte, *grant]{MaximumSize: knownTokens,
		ExpiryCalculator: otter.ExpiryWriting[[sha256.Size]byte, *grant](rememberedFor)})
	if err != nil {
		return nil, fmt.Errorf("making the cache of tokens: %w", err)
	}
	g := &guard{api: api, known: known, client: &http.Client{Timeout: issuerTimeout, Transport: &keysTransport{base: http.DefaultTransport}},
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "refold_auth_refused_total",
			Help: "Requests without a valid token (unauthenticated), without the permission (forbidden), or whose token could not be checked (unavailable)."}, []string{"reason"})}
	reg.MustRegister(g.refused)
	return g, nil
}

// Name is "auth".
func (g *guard) Name() string { return "auth" }

// Start asks the issuer where its keys are.
func (g *guard) Start(ctx context.Context, _ *Host) error {
	ctx = oidc.ClientContext(ctx, g.client)
	provider, err := oidc.NewProvider(ctx, g.api.OIDCIssuer)
	if err != nil {
		return &issuerUnreachable{fmt.Errorf("asking the issuer %s for its configuration: %w", g.api.OIDCIssuer, err)}
	}
	var said struct {
		Keys string   `json:"jwks_uri"`
		Algs []string `json:"id_token_signing_alg_values_supported"`
	}
	if err := provider.Claims(&said); err != nil {
		return fmt.Errorf("reading the configuration of the issuer %s: %w", g.api.OIDCIssuer, err)
	}
	// Symmetric algorithms would let whoever knows a public key sign.
	algs := slices.DeleteFunc(said.Algs, func(alg string) bool { return alg == "none" || strings.HasPrefix(alg, "HS") })
	g.verifier = oidc.NewVerifier(g.api.OIDCIssuer, watchedKeys{oidc.NewRemoteKeySet(ctx, said.Keys)},
		&oidc.Config{ClientID: g.api.OIDCAudience, SupportedSigningAlgs: algs})
	return nil
}

// Run waits for the end of ctx.
func (g *guard) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// wrap returns next behind the guard. Until ready tells that the guard is up
// nothing passes.
func (g *guard) wrap(next http.Handler, ready func() bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !ready() {
			g.unavailable("see /readyz?verbose on the admin port").Write(w)
			return
		}
		needed := permission(r)
		if p := g.check(r, needed); p != nil {
			challenge(w, p, needed)
			p.Write(w)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// check returns why a request may not pass, or nil.
func (g *guard) check(r *http.Request, needed string) *problem.Problem {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if token == "" || !strings.EqualFold(scheme, "Bearer") {
		g.refused.WithLabelValues("unauthenticated").Inc()
		return problem.New(http.StatusUnauthorized, "unauthenticated", "A bearer token is needed", "send Authorization: Bearer <token>")
	}
	found, err := g.grant(r.Context(), strings.TrimSpace(token))
	var unreachable *issuerUnreachable
	switch {
	case errors.As(err, &unreachable):
		return g.unavailable("the token is signed with a key that is not known here, and the issuer's keys cannot be had at the moment")
	case err != nil:
		g.refused.WithLabelValues("unauthenticated").Inc()
		return problem.New(http.StatusUnauthorized, "unauthenticated", "The token is not valid", why(err))
	case !slices.Contains(found.permissions, needed):
		g.refused.WithLabelValues("forbidden").Inc()
		return problem.New(http.StatusForbidden, "forbidden", "The token does not allow this",
			fmt.Sprintf("the claim %s has to hold %s", g.api.OIDCClaim, needed)).With("permission", needed)
	}
	return nil
}

func (g *guard) unavailable(detail string) *problem.Problem {
	g.refused.WithLabelValues("unavailable").Inc()
	return problem.New(http.StatusServiceUnavailable, "unavailable", "Tokens cannot be checked", detail)
}

// why says what is wrong with a token in words of ours: the library's name parts
// of it.
func why(err error) string {
	var expired *oidc.TokenExpiredError
	if errors.As(err, &expired) {
		return "it has expired"
	}
	return "it is malformed, not signed by the issuer, or made for another audience"
}

// challenge is RFC 6750's header.
func challenge(w http.ResponseWriter, p *problem.Problem, needed string) {
	switch p.Status {
	case http.StatusUnauthorized:
		w.Header().Set("WWW-Authenticate", `Bearer realm="refold", scope="`+needed+`"`)
	case http.StatusForbidden:
		w.Header().Set("WWW-Authenticate", `Bearer realm="refold", error="insufficient_scope", scope="`+needed+`"`)
	}
}

// grant verifies a token, or remembers that it did.
func (g *guard) grant(ctx context.Context, token string) (*grant, error) {
	key := sha256.Sum256([]byte(token))
	if found, ok := g.known.GetIfPresent(key); ok && time.Now().Before(found.until) {
		return found, nil
	}
	var outage error
	verified, err := g.verifier.Verify(context.WithValue(ctx, outageKey{}, &outage), token)
	if err != nil {
		return nil, errors.Join(err, outage) // the verifier does not wrap
	}
	claims := make(map[string]any)
	if err := verified.Claims(&claims); err != nil {
		return nil, fmt.Errorf("reading the token's claims: %w", err)
	}
	found := &grant{permissions: texts(claim(claims, g.api.OIDCClaim)), until: verified.Expiry}
	g.known.Set(key, found)
	return found, nil
}

// claim finds a claim by its name or, as in realm_access.roles, its path.
func claim(claims map[string]any, name string) any {
	if value, ok := claims[name]; ok {
		return value
	}
	first, rest, more := strings.Cut(name, ".")
	if inner, ok := claims[first].(map[string]any); ok && more {
		return claim(inner, rest)
	}
	return nil
}

// texts reads a claim that is a list, or words as OAuth's scope is.
func texts(value any) []string {
	switch v := value.(type) {
	case string:
		return strings.Fields(v)
	case []any:
		var all []string
		for _, item := range v {
			if text, ok := item.(string); ok {
				all = append(all, text)
			}
		}
		return all
	}
	return nil
}

// issuerUnreachable is the issuer's failure, not the token's.
type issuerUnreachable struct{ err error }

func (e *issuerUnreachable) Error() string { return e.err.Error() }
func (e *issuerUnreachable) Unwrap() error { return e.err }

type outageKey struct{}

// watchedKeys tells an issuer that does not answer from a signature that is
// wrong, which the verifier's errors do not.
type watchedKeys struct{ oidc.KeySet }

func (k watchedKeys) VerifySignature(ctx context.Context, token string) ([]byte, error) {
	payload, err := k.KeySet.VerifySignature(ctx, token)
	var unreachable *issuerUnreachable
	if outage, ok := ctx.Value(outageKey{}).(*error); ok && (errors.As(err, &unreachable) || err != nil && ctx.Err() != nil) {
		*outage = &issuerUnreachable{err}
	}
	return payload, err
}

// keysTransport asks for keys once in keysPause at most, and makes whatever is no
// answer an [issuerUnreachable].
type keysTransport struct {
	base http.RoundTripper
	mu   sync.Mutex
	last map[string]time.Time // by URL: the configuration, the keys
}

func (t *keysTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	if !t.due(r.URL.String()) {
		return nil, &issuerUnreachable{errors.New("the issuer was asked a moment ago")}
	}
	answer, err := t.base.RoundTrip(r)
	if err != nil {
		return nil, &issuerUnreachable{err}
	}
	if answer.StatusCode != http.StatusOK {
		answer.Body.Close()
		return nil, &issuerUnreachable{fmt.Errorf("%s answers %s", r.URL, answer.Status)}
	}
	return answer, nil
}

func (t *keysTransport) due(url string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.last == nil {
		t.last = make(map[string]time.Time)
	}
	if time.Since(t.last[url]) < keysPause {
		return false
	}
	t.last[url] = time.Now()
	return true
}
