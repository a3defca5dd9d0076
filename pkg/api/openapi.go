package api

import (
	_ "embed"
	"net/http"
)

//go:embed openapi.json
var document []byte

// openAPI serves the description of this API.
func openAPI(w http.ResponseWriter, _ *http.Request) error {
	w.Header().Set("Content-Type", "application/json")
	w.Write(document) // a client that has gone needs no answer
	return nil
}
