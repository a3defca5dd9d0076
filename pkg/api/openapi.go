package api

import (
	_ "embed"
	"net/http"
)

//go:embed openapi.json
var document []byte

// Document serves the description of all of refold's operations but commands, for
// programs that serve no aggregates.
func Document(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.Write(document) // a client that has gone needs no answer
}

// openAPI serves the description of this API.
func (a *API) openAPI(w http.ResponseWriter, _ *http.Request) error {
	w.Header().Set("Content-Type", "application/json")
	described := document
	if with := a.described.Load(); with != nil {
		described = *with
	}
	w.Write(described) // a client that has gone needs no answer
	return nil
}
