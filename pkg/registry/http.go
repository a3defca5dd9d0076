package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"

	"github.com/refoldhq/refold/pkg/avro"
)

// Error codes of Confluent's REST API.
const (
	codeConflict    = 409
	codeSubject     = 40401
	codeVersion     = 40402
	codeSchema      = 40403
	codeConfig      = 40408
	codeInvalid     = 42201
	codeBadVersion  = 42202
	codeBadLevel    = 42203
	codeBadMode     = 42204
	codeForbidden   = 42205
	codeNoMode      = 40409
	codeUnavailable = 50001
	codeForwarding  = 50003
)

const contentType = "application/vnd.schemaregistry.v1+json"

// maxBody bounds a request.
const maxBody = 1 << 20

type handler struct{ registry *Registry }

// Handler serves Confluent's Schema Registry API, to be mounted below a prefix
// that is stripped.
func (r *Registry) Handler() http.Handler {
	h := handler{r}
	mux := http.NewServeMux()
	for pattern, f := range map[string]func(*http.Request) (any, error){
		"GET /subjects":                                 h.subjects,
		"POST /subjects/{subject}":                      h.find,
		"GET /subjects/{subject}/versions":              h.versions,
		"POST /subjects/{subject}/versions":             h.register,
		"GET /subjects/{subject}/versions/{version}":    h.version,
		"GET /schemas/ids/{id}":                         h.schema,
		"GET /schemas/ids/{id}/versions":                h.usages,
		"GET /schemas/ids/{id}/subjects":                h.usingSubjects,
		"GET /schemas/types":                            func(*http.Request) (any, error) { return []string{"AVRO"}, nil },
		"GET /config":                                   h.config,
		"PUT /config":                                   h.setConfig,
		"GET /config/{subject}":                         h.config,
		"PUT /config/{subject}":                         h.setConfig,
		"DELETE /config":                                h.resetConfig,
		"DELETE /config/{subject}":                      h.resetConfig,
		"GET /mode":                                     mode,
		"GET /mode/{subject}":                           mode,
		"PUT /mode":                                     setMode,
		"PUT /mode/{subject}":                           setMode,
		"DELETE /mode":                                  resetMode,
		"DELETE /mode/{subject}":                        resetMode,
		"DELETE /subjects/{subject}":                    h.deleteSubject,
		"DELETE /subjects/{subject}/versions/{version}": h.deleteVersion,
		"POST /compatibility/subjects/{subject}/versions/{version}": h.compatible,
		"POST /compatibility/subjects/{subject}/versions":           h.compatible,
		"GET /{$}": func(*http.Request) (any, error) { return struct{}{}, nil },
	} {
		mux.HandleFunc(pattern, answer(f))
	}
	mux.HandleFunc("GET /subjects/{subject}/versions/{version}/schema", raw(func(r *http.Request) (string, error) {
		v, err := h.lookup(r)
		return v.Schema, err
	}))
	mux.HandleFunc("GET /schemas/ids/{id}/schema", raw(func(r *http.Request) (string, error) {
		id, err := idOf(r)
		if err != nil {
			return "", err
		}
		return h.registry.source(r.Context(), id)
	}))
	mux.HandleFunc("/", answer(func(*http.Request) (any, error) { return nil, errNotFound }))
	return mux
}

// apiError is an error in the API's own terms.
type apiError struct {
	code    int
	message string
}

func (e *apiError) Error() string { return e.message }

var errNotFound = &apiError{http.StatusNotFound, "HTTP 404 Not Found"}

func (e *apiError) status() int {
	if e.code >= 10000 {
		return e.code / 100
	}
	return e.code
}

func answer(f func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		v, err := f(r)
		write(w, v, err)
	}
}

func write(w http.ResponseWriter, v any, err error) {
	w.Header().Set("Content-Type", contentType)
	if err != nil {
		e := toAPI(err)
		w.WriteHeader(e.status())
		v = map[string]any{"error_code": e.code, "message": e.message}
	}
	json.NewEncoder(w).Encode(v) // a client that has gone needs no answer
}

func toAPI(err error) *apiError {
	var e *apiError
	var incompatible *Incompatible
	switch {
	case errors.As(err, &incompatible):
		return &apiError{codeConflict, "Schema being registered is incompatible with an earlier schema for subject " + strconv.Quote(incompatible.Subject) + ", details: " + incompatible.Error()}
	case errors.As(err, &e):
		return e
	case errors.Is(err, ErrUnknownSubject):
		return &apiError{codeSubject, "Subject not found."}
	case errors.Is(err, ErrUnknownVersion):
		return &apiError{codeVersion, "Version not found."}
	case errors.Is(err, ErrUnknownSchema):
		return &apiError{codeSchema, "Schema not found"}
	default:
		return &apiError{codeUnavailable, "the registry's database is not available"}
	}
}

func (h handler) subjects(r *http.Request) (any, error) {
	list, err := h.registry.Subjects(r.Context())
	if list == nil {
		list = []string{}
	}
	return list, err
}

func (h handler) versions(r *http.Request) (any, error) {
	list, err := h.registry.Versions(r.Context(), r.PathValue("subject"))
	numbers := make([]int, len(list))
	for i, v := range list {
		numbers[i] = v.Version
	}
	return numbers, err
}

func (h handler) version(r *http.Request) (any, error) {
	return h.lookup(r)
}

func (h handler) lookup(r *http.Request) (Version, error) {
	list, err := h.registry.Versions(r.Context(), r.PathValue("subject"))
	if err != nil {
		return Version{}, err
	}
	name := r.PathValue("version")
	if name == "latest" || name == "-1" {
		return list[len(list)-1], nil
	}
	n, err := strconv.Atoi(name)
	if err != nil || n < 1 {
		return Version{}, &apiError{codeBadVersion, fmt.Sprintf("The specified version '%s' is not a valid version id. Allowed values are between [1, 2^31-1] and the string \"latest\"", name)}
	}
	i := slices.IndexFunc(list, func(v Version) bool { return v.Version == n })
	if i < 0 {
		return Version{}, ErrUnknownVersion
	}
	return list[i], nil
}

// raw answers with a schema alone.
func raw(f func(*http.Request) (string, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		source, err := f(r)
		writeRaw(w, source, err)
	}
}

func writeRaw(w http.ResponseWriter, source string, err error) {
	if err != nil {
		write(w, nil, err)
		return
	}
	w.Header().Set("Content-Type", contentType)
	io.WriteString(w, source) // a client that has gone needs no answer
}

func idOf(r *http.Request) (int, error) {
	id, err := strconv.ParseInt(r.PathValue("id"), 10, 32)
	if err != nil {
		return 0, ErrUnknownSchema
	}
	return int(id), nil
}

func (h handler) schema(r *http.Request) (any, error) {
	id, err := idOf(r)
	if err != nil {
		return nil, err
	}
	source, err := h.registry.source(r.Context(), id)
	return map[string]any{"schema": source}, err
}

func (h handler) usages(r *http.Request) (any, error) {
	id, err := idOf(r)
	if err != nil {
		return nil, err
	}
	list, err := h.registry.Usages(r.Context(), id)
	out := make([]map[string]any, len(list))
	for i, v := range list {
		out[i] = map[string]any{"subject": v.Subject, "version": v.Version}
	}
	return out, err
}

func (h handler) usingSubjects(r *http.Request) (any, error) {
	id, err := idOf(r)
	if err != nil {
		return nil, err
	}
	list, err := h.registry.Usages(r.Context(), id)
	out := make([]string, len(list))
	for i, v := range list {
		out[i] = v.Subject
	}
	return out, err
}

// read reads the schema of a request's body.
func read(r *http.Request) (*avro.Schema, error) {
	var body struct {
		Schema     string `json:"schema"`
		SchemaType string `json:"schemaType"`
		References []any  `json:"references"`
	}
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		return nil, &apiError{400, "the body is not the JSON of a schema: " + err.Error()}
	}
	if body.SchemaType != "" && body.SchemaType != "AVRO" {
		return nil, &apiError{codeInvalid, "schemaType " + body.SchemaType + " is not supported: only AVRO is"}
	}
	if len(body.References) > 0 {
		return nil, &apiError{codeInvalid, "references are not supported: put the types into the schema"}
	}
	schema, err := avro.Parse([]byte(body.Schema))
	if err != nil {
		return nil, &apiError{codeInvalid, err.Error()}
	}
	return schema, nil
}

func (h handler) find(r *http.Request) (any, error) {
	schema, err := read(r)
	if err != nil {
		return nil, err
	}
	return h.registry.Find(r.Context(), r.PathValue("subject"), schema)
}

func (h handler) register(r *http.Request) (any, error) {
	schema, err := read(r)
	if err != nil {
		return nil, err
	}
	id, err := h.registry.Register(r.Context(), r.PathValue("subject"), schema)
	return map[string]any{"id": id}, err
}

// compatible says whether the subject's level allows the schema of the body beside
// one version, or as the next version of the subject. A subject that does not
// exist has nothing that a schema could break, unless a version of it is named by
// its number.
func (h handler) compatible(r *http.Request) (any, error) {
	schema, err := read(r)
	if err != nil {
		return nil, err
	}
	list, err := h.registry.Versions(r.Context(), r.PathValue("subject"))
	unknown, version := errors.Is(err, ErrUnknownSubject), r.PathValue("version")
	if err != nil && !unknown {
		return nil, err
	}
	if version != "" && !(unknown && (version == "latest" || version == "-1")) {
		one, err := h.lookup(r)
		if err != nil {
			return nil, err
		}
		list = []Version{one}
	}
	level, _, err := h.registry.Compatibility(r.Context(), r.PathValue("subject"))
	if err != nil {
		return nil, err
	}
	before := make([]avro.Numbered, len(list))
	for i, v := range list {
		old, err := h.registry.SchemaByID(r.Context(), v.ID)
		if err != nil {
			return nil, err
		}
		before[i] = avro.Numbered{Version: v.Version, Schema: old}
	}
	reasons := level.Check(schema, before)
	out := map[string]any{"is_compatible": len(reasons) == 0}
	if r.URL.Query().Get("verbose") == "true" {
		out["messages"] = append([]string{}, reasons...)
	}
	return out, nil
}

func (h handler) config(r *http.Request) (any, error) {
	subject := r.PathValue("subject")
	level, own, err := h.registry.Compatibility(r.Context(), subject)
	if err == nil && !own && r.URL.Query().Get("defaultToGlobal") != "true" {
		return nil, &apiError{codeConfig, fmt.Sprintf("Subject '%s' does not have subject-level compatibility configured", subject)}
	}
	return map[string]any{"compatibilityLevel": level}, err
}

func (h handler) setConfig(r *http.Request) (any, error) {
	var body struct{ Compatibility string }
	err := json.NewDecoder(r.Body).Decode(&body)
	level, bad := avro.ParseLevel(body.Compatibility)
	if err != nil || bad != nil {
		return nil, &apiError{codeBadLevel, "Invalid compatibility level. Valid values are none, backward, forward, full, backward_transitive, forward_transitive, and full_transitive"}
	}
	return map[string]any{"compatibility": level}, h.registry.SetCompatibility(r.Context(), r.PathValue("subject"), level)
}

// resetConfig answers with the level that held until now, as Confluent's does.
func (h handler) resetConfig(r *http.Request) (any, error) {
	level, own, err := h.registry.Compatibility(r.Context(), r.PathValue("subject"))
	if err != nil {
		return nil, err
	}
	if !own {
		return nil, ErrUnknownSubject
	}
	return map[string]any{"compatibilityLevel": level}, h.registry.ResetCompatibility(r.Context(), r.PathValue("subject"))
}

// Nothing is deleted: the log holds events that were written with the schemas, and
// versions that are compared with new ones must not be forgotten. What does not exist
// is said to be missing, as without this rule.
func (h handler) deleteSubject(r *http.Request) (any, error) {
	if _, err := h.registry.Versions(r.Context(), r.PathValue("subject")); err != nil {
		return nil, err
	}
	return nil, errForbidden(r.PathValue("subject"))
}

func (h handler) deleteVersion(r *http.Request) (any, error) {
	if _, err := h.lookup(r); err != nil {
		return nil, err
	}
	return nil, errForbidden(r.PathValue("subject"))
}

func errForbidden(subject string) error {
	return &apiError{codeForbidden, fmt.Sprintf("Operation not permitted: schemas of subject '%s' are kept for ever, as events in the log were written with them", subject)}
}

// mode is the same for all subjects and does not change.
func mode(*http.Request) (any, error) { return map[string]any{"mode": "READWRITE"}, nil }

func setMode(r *http.Request) (any, error) {
	var body struct{ Mode string }
	err := json.NewDecoder(r.Body).Decode(&body)
	switch {
	case err == nil && body.Mode == "READWRITE":
		return mode(r)
	case err == nil && slices.Contains([]string{"READONLY", "READONLY_OVERRIDE", "IMPORT", "FORWARD"}, body.Mode):
		return nil, &apiError{codeForbidden, "Operation not permitted: the mode is READWRITE and does not change"}
	default:
		return nil, &apiError{codeBadMode, "Invalid mode. Valid values are READWRITE, READONLY, READONLY_OVERRIDE, IMPORT and FORWARD"}
	}
}

func resetMode(r *http.Request) (any, error) {
	if subject := r.PathValue("subject"); subject != "" {
		return nil, &apiError{codeNoMode, fmt.Sprintf("Subject '%s' does not have subject-level mode configured", subject)}
	}
	return mode(r)
}
