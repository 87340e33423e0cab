package images

import (
	"debug/elf"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// libraryDirs are where Linux distributions have shared libraries, in the order of preference (ld.so(8), Debian's multiarch).
var libraryDirs = []string{
	"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu", "/usr/lib/aarch64-linux-gnu",
	"/lib64", "/usr/lib64", "/lib", "/usr/lib",
}

// Libraries finds what a program of this machine is linked with: its loader and its shared libraries, and theirs, at the paths where the
// loader will look for them in the image. A static program has none. Nothing is run: ldd would start the program.
func Libraries(program string) ([]File, error) {
	var files []File
	seen := map[string]bool{}
	var add func(of string) error
	add = func(of string) error {
		f, err := elf.Open(of)
		if err != nil {
			return fmt.Errorf("%s: %w", of, err)
		}
		defer f.Close()
		for _, p := range f.Progs {
			if p.Type != elf.PT_INTERP {
				continue
			}
			text, err := io.ReadAll(p.Open())
			if err != nil {
				return fmt.Errorf("%s: %w", of, err)
			}
			if loader := strings.TrimRight(string(text), "\x00"); !seen[filepath.Base(loader)] {
				seen[filepath.Base(loader)] = true
				files = append(files, File{Path: loader, From: loader})
			}
		}
		needed, err := f.ImportedLibraries()
		if err != nil {
			return fmt.Errorf("%s: %w", of, err)
		}
		for _, name := range needed {
			if seen[name] {
				continue
			}
			seen[name] = true
			at, err := findLibrary(name, f.Machine)
			if err != nil {
				return fmt.Errorf("%s: %w", of, err)
			}
			files = append(files, File{Path: at, From: at})
			if err := add(at); err != nil {
				return err
			}
		}
		return nil
	}
	return files, add(program)
}

func findLibrary(name string, machine elf.Machine) (string, error) {
	for _, dir := range libraryDirs {
		at := filepath.Join(dir, name)
		if _, err := os.Stat(at); err != nil {
			continue
		}
		f, err := elf.Open(at)
		if err != nil {
			continue
		}
		f.Close()
		if f.Machine == machine {
			return at, nil
		}
	}
	return "", fmt.Errorf("shared library %s is in none of %s", name, strings.Join(libraryDirs, ", "))
}
