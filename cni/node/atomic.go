package node

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Temporary files are called .weft-node-NUMBER.tmp: no container runtime reads such a name, and the next start removes what a crash left.
const (
	temporaryPrefix = ".weft-node-"
	temporarySuffix = ".tmp"
)

// writeTemporary makes a complete file beside path that is on the disk, with the mode given.
func writeTemporary(path string, content io.Reader, mode fs.FileMode) (name string, err error) {
	f, err := os.CreateTemp(filepath.Dir(path), temporaryPrefix+"*"+temporarySuffix)
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = io.Copy(f, content)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	return f.Name(), errors.Join(err, f.Close())
}

// place makes content the content of path in one step: whoever opens path gets all of the old or all of the new.
func place(path string, content io.Reader, mode fs.FileMode) error {
	name, err := writeTemporary(path, content, mode)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(name, path); err != nil {
		return errors.Join(err, os.Remove(name))
	}
	return syncDir(filepath.Dir(path))
}

// settle is how long a writer that had the file open while it was exchanged may take to finish.
const settle = 2 * time.Second

// edit changes the content of path in one step and never loses what somebody else writes meanwhile: the new file and the old one are exchanged, and when
// what comes out is not what the change was made from, the change is made again from that. path must not be a symbolic link.
//
// A writer that has the file open at this moment gets time to finish; if what they leave is nothing that change accepts, their file is put back.
func edit(path string, before []byte, change func(content []byte) ([]byte, error)) (written []byte, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	after, err := change(before)
	if err != nil {
		return nil, err
	}
	for range 100 {
		name, err := writeTemporary(path, bytes.NewReader(after), info.Mode().Perm())
		if err != nil {
			return nil, fmt.Errorf("write %s: %w", path, err)
		}
		if s, ok := info.Sys().(*syscall.Stat_t); ok && int(s.Uid) != os.Geteuid() {
			_ = os.Chown(name, int(s.Uid), int(s.Gid)) // needs CAP_CHOWN; root's file serves a runtime as well
		}
		out, err := exchange(name, path)
		if err != nil {
			return nil, errors.Join(err, os.Remove(name))
		}
		if bytes.Equal(out, before) {
			return after, errors.Join(os.Remove(name), syncDir(filepath.Dir(path)))
		}
		next, err := finished(name, change)
		if err != nil {
			_, backErr := exchange(name, path)
			return nil, errors.Join(fmt.Errorf("%s was changed meanwhile: %w", path, err), backErr, os.Remove(name))
		}
		if err := os.Remove(name); err != nil {
			return nil, err
		}
		before, after = after, next
	}
	return nil, fmt.Errorf("%s changes all the time", path)
}

// exchange swaps two files and reads what came out at temporary. Where a filesystem cannot swap, it renames, and only looks right before.
func exchange(temporary, path string) ([]byte, error) {
	err := unix.Renameat2(unix.AT_FDCWD, temporary, unix.AT_FDCWD, path, unix.RENAME_EXCHANGE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		out, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		if err := os.Rename(temporary, path); err != nil {
			return nil, err
		}
		return out, os.WriteFile(temporary, out, 0o600)
	}
	if err != nil {
		return nil, fmt.Errorf("put %s in place: %w", path, err)
	}
	return os.ReadFile(temporary)
}

// finished waits until the file has content that change accepts.
func finished(path string, change func([]byte) ([]byte, error)) ([]byte, error) {
	for deadline := time.Now().Add(settle); ; time.Sleep(5 * time.Millisecond) {
		text, err := os.ReadFile(path)
		if err == nil {
			if text, err = change(text); err == nil {
				return text, nil
			}
		}
		if time.Now().After(deadline) {
			return nil, err
		}
	}
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// removeTemporary removes what an earlier process left when it was killed.
func removeTemporary(dirs ...string) error {
	var errs []error
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), temporaryPrefix) && strings.HasSuffix(e.Name(), temporarySuffix) {
				errs = append(errs, os.Remove(filepath.Join(dir, e.Name())))
			}
		}
	}
	return errors.Join(errs...)
}

func hash(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// hashFile is "" for a file that does not exist.
func hashFile(path string) (string, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func placeJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return place(path, bytes.NewReader(append(b, '\n')), 0o600)
}

// inode tells files apart that have had the same name one after the other.
func inode(info fs.FileInfo) any {
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return [2]uint64{uint64(s.Dev), s.Ino}
	}
	return nil
}
