// Package schemas holds the contracts that are compiled into the programs: the
// demo domain, the user account. --schemas puts a folder in their place.
package schemas

import "embed"

// FS has the layout that avro.LoadContracts and projection.LoadDefinitions read.
//
//go:embed events projections golden
var FS embed.FS
