package programs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// module is a Go module from which programs are compiled. It is built as itself, by its own go.mod and go.sum in copies
// (go install refuses a module that replaces others).
type module struct {
	path, version string
	packages      []string // of this module or of those it requires
	flags         []string // of go build
	env           []string // of go build, beside ours
	program       string   // its name, where the module's path ends otherwise
	edit          func(goMod string) string
	// wrap is our own package main in place of the module's; it requires the module.
	wrap func(source string) (main string, err error)
	// ours builds with the versions of our go.mod where they are newer: most of what the program is compiled of is then compiled for our own
	// programs anyway. Not for what a node is judged by, Kubernetes and containerd.
	ours bool
}

// name is that of the directory for the copies, and of the program where it is ours.
func (m module) name() string {
	if m.program != "" {
		return m.program
	}
	if m.wrap != nil || m.packages[0] == "." {
		return filepath.Base(m.path)
	}
	return filepath.Base(m.packages[0])
}

// compile writes the module's programs into dir.
func (b *Builder) compile(ctx context.Context, m module, dir string) error {
	source, err := b.download(ctx, m.path, m.version)
	if err != nil {
		return err
	}
	work := filepath.Join(dir, ".mod", m.name())
	if err := os.MkdirAll(work, 0o755); err != nil {
		return err
	}
	text, sums, err := b.requirements(source, m)
	if err != nil {
		return err
	}
	in := source
	args := []string{"build", "-mod=mod", "-modfile=" + filepath.Join(work, "go.mod")}
	if m.wrap != nil {
		main, err := m.wrap(source)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(work, "main.go"), []byte(main), 0o644); err != nil {
			return err
		}
		text = moduleLine.ReplaceAllString(text, "module weft.dev/build/"+m.name())
		text = strings.Replace(text, "require (", fmt.Sprintf("require (\n\t%s %s", m.path, m.version), 1)
		in, args = work, args[:2]
	}
	for name, content := range map[string]string{"go.mod": text, "go.sum": sums} {
		if err := os.WriteFile(filepath.Join(work, name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	args = append(args, "-trimpath", "-o", dir+"/")
	args = append(args, m.flags...)
	return b.run(ctx, in, append([]string{"GOWORK=off", "GOFLAGS="}, m.env...), "go", append(args, m.packages...)...)
}

// requirements are the module's go.mod and go.sum, with ours where that is wanted. Of a module that is required twice, go takes the newer.
func (b *Builder) requirements(source string, m module) (goMod, goSum string, err error) {
	read := func(dir, name string) string {
		text, failed := os.ReadFile(filepath.Join(dir, name))
		err = errors.Join(err, failed)
		return string(text)
	}
	goMod, goSum = read(source, "go.mod"), read(source, "go.sum")
	if m.edit != nil {
		goMod = m.edit(goMod)
	}
	if m.ours {
		theirs := goMod
		goMod += "\nrequire (\n"
		for _, line := range requireLine.FindAllStringSubmatch(read(b.root, "go.mod"), -1) {
			if strings.Contains(theirs, "\t"+line[1]+" ") {
				goMod += "\t" + line[1] + " " + line[2] + "\n"
			}
		}
		goMod += ")\n"
		goSum += read(b.root, "go.sum")
	}
	return goMod, goSum, err
}

var requireLine = regexp.MustCompile(`(?m)^\t(\S+) (v\S+)`)

var moduleLine = regexp.MustCompile(`(?m)^module .*$`)

// download returns where the module cache has a module.
func (b *Builder) download(ctx context.Context, path, version string) (dir string, err error) {
	cmd := exec.CommandContext(ctx, "go", "mod", "download", "-json", path+"@"+version)
	cmd.Dir = os.TempDir()
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=")
	out, err := cmd.Output()
	var answer struct{ Dir, Error string }
	if bad := json.Unmarshal(out, &answer); bad != nil && err == nil {
		err = bad
	}
	if answer.Error != "" {
		err = fmt.Errorf("%s", answer.Error)
	}
	if err != nil {
		return "", fmt.Errorf("download %s %s: %w; is GOPROXY set, and reachable?", path, version, err)
	}
	return answer.Dir, nil
}
