package learned

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Dir is a Store in a directory of one machine; several processes may share it. It is made when something is written.
type Dir string

func (d Dir) path(shard int) string {
	return filepath.Join(string(d), fmt.Sprintf("learned-%02d.json", shard))
}

// Follow implements Store. It looks at the directory each second: an inotify instance is too dear for something so rare.
func (d Dir) Follow(ctx context.Context, read func(int, []byte)) error {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	var last time.Time
	var before [Shards]string
	for first := true; ; first = false {
		// Writing renames a file into the directory, which changes the directory's time. A write in the same tick of the kernel's clock as the one
		// before may go unnoticed until the next; then a sister asks for what is missing.
		info, err := os.Stat(string(d))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if first || err == nil && !info.ModTime().Equal(last) {
			for shard := range Shards {
				text, err := d.load(shard)
				if err != nil {
					return err
				}
				if first || string(text) != before[shard] {
					read(shard, text)
					before[shard] = string(text)
				}
			}
			if err == nil {
				last = info.ModTime()
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

func (d Dir) load(shard int) ([]byte, error) {
	text, err := os.ReadFile(d.path(shard))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return text, err
}

// Update implements Store.
func (d Dir) Update(_ context.Context, shard int, change func([]byte) []byte) error {
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return err
	}
	lock, err := os.Open(string(d))
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", d, err)
	}
	old, err := d.load(shard)
	if err != nil {
		return err
	}
	text := change(old)
	if text == nil {
		return nil
	}
	temporary := d.path(shard) + ".new"
	if err := os.WriteFile(temporary, text, 0o600); err != nil {
		return err
	}
	return os.Rename(temporary, d.path(shard))
}
