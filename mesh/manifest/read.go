package manifest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/weft-mesh/weft/mesh"
)

// Read decodes files, directories with everything below them, and standard input ("-"). In directories
// only .yaml, .yml and .json count, and nothing whose name begins with a dot. An object in two places is an
// error that names both. On error there are no objects; the error is of type [Errors].
func Read(paths ...string) ([]mesh.Object, []Warning, error) {
	var objects []mesh.Object
	var warnings []Warning
	var errs Errors
	first := map[string]mesh.Object{}
	take := func(found []mesh.Object, warned []Warning, err error) {
		warnings = append(warnings, warned...)
		var list Errors
		if errors.As(err, &list) {
			errs = append(errs, list...)
			return
		}
		for _, o := range found {
			key, group := keyOf(o.Object)
			id := group + "/" + key.String()
			if old, twice := first[id]; twice && key.Name != "" {
				errs = append(errs, duplicate(key, o, old))
				continue
			}
			first[id] = o
			objects = append(objects, o)
		}
	}
	seen := map[string]bool{}
	for _, path := range paths {
		if path == "-" {
			take(Decode(os.Stdin, "stdin"))
			continue
		}
		files, err := Files(path)
		if err != nil {
			errs = append(errs, &Error{File: path, Message: fileMessage(err)})
			continue
		}
		for _, f := range files {
			if !seen[filepath.Clean(f)] {
				seen[filepath.Clean(f)] = true
				take(DecodeFile(f))
			}
		}
	}
	if err := errs.err(); err != nil {
		return nil, warnings, err
	}
	return objects, warnings, nil
}

// DecodeFile is [Decode] for a file.
func DecodeFile(path string) ([]mesh.Object, []Warning, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, Errors{{File: path, Message: fileMessage(err)}}
	}
	defer f.Close()
	return Decode(f, path)
}

// fileMessage leaves out what the place in front of it says already.
func fileMessage(err error) string {
	var p *fs.PathError
	if errors.As(err, &p) {
		return fmt.Sprintf("cannot %s it: %v", p.Op, p.Err)
	}
	return err.Error()
}

// IsManifest reports whether a file in a directory counts: by its extension, and not hidden as
// editors' swap files are.
func IsManifest(name string) bool {
	name = filepath.Base(name)
	if strings.HasPrefix(name, ".") || strings.HasPrefix(name, "#") {
		return false
	}
	switch filepath.Ext(name) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}

// IsHidden reports whether a directory is passed over: "..data" and its like belong to Kubernetes'
// volumes, whose visible files are links into them.
func IsHidden(dir string) bool {
	return strings.HasPrefix(filepath.Base(dir), ".") && len(filepath.Base(dir)) > 1
}

// Files lists the manifests that a path stands for, sorted: itself, or those in the directory and below.
// Links are followed; a link that leads back to a directory above it is not.
func Files(path string) ([]string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	files, _, err := Walk(path)
	return files, err
}

// Walk lists the manifests in and below a directory, and the directories themselves, sorted.
func Walk(dir string) (files, dirs []string, err error) {
	err = walk(dir, nil, &files, &dirs)
	slices.Sort(files)
	return files, dirs, err
}

func walk(dir string, above []string, files, dirs *[]string) error {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	if slices.Contains(above, real) {
		return nil
	}
	above = append(slices.Clip(above), real)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	*dirs = append(*dirs, dir)
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		isDir := e.IsDir()
		if e.Type()&fs.ModeSymlink != 0 {
			info, err := os.Stat(path)
			if err != nil {
				continue // a dangling link, or the target is being replaced: there is nothing to read
			}
			isDir = info.IsDir()
		}
		switch {
		case isDir && !IsHidden(path):
			err = walk(path, above, files, dirs)
		case !isDir && IsManifest(path):
			*files = append(*files, path)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // gone since it was listed
			return err
		}
		err = nil
	}
	return nil
}
