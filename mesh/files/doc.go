// Package files keeps a mesh in step with YAML and JSON files: it reads files and
// directories, watches them, and says which objects came and went.
//
// What a file with a mistake said before stays in force until the mistake is gone. It never decides
// what an object means (mesh does) or whether it is right (mesh/manifest does).
//
// Open watch.go first; set.go decides which contents are in force.
package files
