package pod

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// dataDir is the link that points at the current version of a volume's content.
const dataDir = "..data"

// writeAtomically makes dir show exactly files, all at once, as Kubernetes' atomic writer does (kubelet: AtomicWriter):
// the files go to a new directory "..<time>", the link "..data" is renamed over, and what a user sees are links through
// "..data". Programs watch for that swap. Nothing is touched when the content is the same.
func writeAtomically(dir string, files map[string]fileData, group *int64) error {
	data := filepath.Join(dir, dataDir)
	old, err := os.Readlink(data)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if old != "" && sameContent(filepath.Join(dir, old), files) {
		return nil
	}
	version, err := os.MkdirTemp(dir, time.Now().UTC().Format("..2006_01_02_15_04_05."))
	if err != nil {
		return err
	}
	if err := fill(version, files, group); err != nil {
		return errors.Join(err, os.RemoveAll(version))
	}
	next := data + "_tmp"
	if err := os.Remove(next); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Symlink(filepath.Base(version), next); err != nil {
		return err
	}
	if err := os.Rename(next, data); err != nil {
		return err
	}
	if err := linkNames(dir, files); err != nil {
		return err
	}
	if old != "" {
		return os.RemoveAll(filepath.Join(dir, old))
	}
	return nil
}

// fill writes files into a directory that nobody sees yet.
func fill(dir string, files map[string]fileData, group *int64) error {
	if err := own(dir, 0o755, nil, group); err != nil {
		return err
	}
	for name, f := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		for parent := filepath.Dir(path); parent != dir; parent = filepath.Dir(parent) {
			if err := own(parent, 0o755, nil, group); err != nil {
				return err
			}
		}
		if err := os.WriteFile(path, f.data, 0o600); err != nil {
			return err
		}
		if err := own(path, os.FileMode(f.mode), f.user, group); err != nil {
			return err
		}
	}
	return nil
}

func own(path string, mode os.FileMode, user, group *int64) error {
	uid, gid := -1, -1
	if user != nil {
		uid = int(*user)
	}
	if group != nil {
		gid = int(*group)
		if info, err := os.Stat(path); err == nil && info.IsDir() {
			mode |= os.ModeSetgid
		}
	}
	if err := os.Chown(path, uid, gid); err != nil {
		return err
	}
	return os.Chmod(path, mode)
}

// linkNames makes the links that a user sees, and removes those of names that are gone.
func linkNames(dir string, files map[string]fileData) error {
	tops := map[string]bool{}
	for name := range files {
		top, _, _ := strings.Cut(name, "/")
		tops[top] = true
	}
	for top := range tops {
		err := os.Symlink(filepath.Join(dataDir, top), filepath.Join(dir, top))
		if err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "..") && !tops[e.Name()] {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// sameContent compares a version with what it should be; modes follow from the pod's specification and do not change.
func sameContent(version string, files map[string]fileData) bool {
	found := 0
	err := filepath.WalkDir(version, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		name, err := filepath.Rel(version, path)
		if err != nil {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if f, ok := files[name]; !ok || !bytes.Equal(f.data, data) {
			return fmt.Errorf("%s differs", name)
		}
		found++
		return nil
	})
	return err == nil && found == len(files)
}
