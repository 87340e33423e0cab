// Package manifest turns YAML and JSON that people write into objects, and tells
// them exactly what is wrong with it: file, line, object, field, remedy.
//
// It knows Kubernetes' built-in kinds and Istio's, the latter with the schemas and CEL rules
// of their CustomResourceDefinitions, so that a file is judged offline as an API server would judge
// it, and with the rules that no schema expresses. It never looks at other objects: whether a
// referenced host or subset exists is not its business.
//
// Open decode.go first; schema.go has the CRDs, validate*.go the further rules.
package manifest
