// Package profiles has the installation profiles: IstioOperator files that users' settings are laid over. "default" is below
// all others but "empty".
package profiles

import (
	"embed"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
)

//go:embed *.yaml
var files embed.FS

// Names are all profiles, sorted.
func Names() []string {
	entries, err := fs.ReadDir(files, ".")
	if err != nil {
		panic(err) // the embedded directory is always there
	}
	var out []string
	for _, e := range entries {
		out = append(out, strings.TrimSuffix(e.Name(), path.Ext(e.Name())))
	}
	slices.Sort(out)
	return out
}

// Read returns the text of a profile.
func Read(name string) ([]byte, error) {
	text, err := files.ReadFile(name + ".yaml")
	if err != nil {
		return nil, fmt.Errorf("there is no profile %q: choose one of %s", name, strings.Join(Names(), ", "))
	}
	return text, nil
}

// About is the first comment of a profile: what it is for.
func About(name string) string {
	text, err := Read(name)
	if err != nil {
		return ""
	}
	var out []string
	for line := range strings.Lines(string(text)) {
		comment, ok := strings.CutPrefix(strings.TrimSpace(line), "# ")
		if !ok {
			break
		}
		out = append(out, comment)
	}
	return strings.Join(out, " ")
}
