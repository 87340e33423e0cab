package node

import (
	"os"
	"path/filepath"
	"testing"
)

func TestTheInotifyLimitIsRaisedAndNeverLowered(t *testing.T) {
	for before, c := range map[string]struct {
		have   int
		raised bool
		fails  bool
		after  string
	}{
		"128\n":   {8192, true, false, "8192\n"},
		"8192\n":  {8192, false, false, "8192\n"},
		"65536\n": {65536, false, false, "65536\n"},
		"many\n":  {0, false, true, "many\n"},
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, "max_user_instances")
		if err := os.WriteFile(path, []byte(before), 0o600); err != nil {
			t.Fatal(err)
		}
		have, raised, err := RaiseInotify(dir, InotifyInstances)
		if have != c.have || raised != c.raised || (err != nil) != c.fails {
			t.Errorf("%q: %d %t %v", before, have, raised, err)
		}
		if after, _ := os.ReadFile(path); string(after) != c.after {
			t.Errorf("%q became %q, want %q", before, after, c.after)
		}
	}
	if _, _, err := RaiseInotify(t.TempDir(), InotifyInstances); err == nil {
		t.Error("a directory that is not the kernel's passes")
	}
}

// Writing is refused as in a container whose /proc/sys is read-only: the limit that is there is still told.
func TestALimitThatCannotBeRaisedIsTold(t *testing.T) {
	dir := t.TempDir()
	// A number in a file that nobody can write, not even root.
	if err := os.Symlink("/proc/sys/kernel/ngroups_max", filepath.Join(dir, "max_user_instances")); err != nil {
		t.Fatal(err)
	}
	have, raised, err := RaiseInotify(dir, 1<<30)
	if have == 0 || raised || err == nil {
		t.Errorf("%d %t %v", have, raised, err)
	}
}
