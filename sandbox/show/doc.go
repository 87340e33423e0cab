// Package show prints objects as kubectl does: tables, wide tables, YAML,
// JSON, names, jsonpath, and "describe". It only reads; open table.go first.
package show
