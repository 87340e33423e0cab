package node

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// InotifyInstances is what a node should allow each user. Each Envoy takes three, and all sidecars of a node have one UID: the kernel's default of 128 ends with
// the 42nd sidecar, and an Envoy that gets none dies at start.
const InotifyInstances = 8192

// RaiseInotify lets each user of the machine have at least want inotify instances, and never lowers what somebody else has set. dir is the machine's
// /proc/sys/fs/inotify, which must be writable: in a container that is not privileged it has to be mounted from the host. The limit is left as it is when the agent
// goes, since running sidecars count on it; a reboot resets it.
func RaiseInotify(dir string, want int) (have int, raised bool, err error) {
	path := filepath.Join(dir, "max_user_instances")
	read := func() (int, error) {
		b, err := os.ReadFile(path)
		if err != nil {
			return 0, err
		}
		return strconv.Atoi(strings.TrimSpace(string(b)))
	}
	have, err = read()
	if err != nil || have >= want {
		return have, false, err
	}
	// Without O_CREATE and O_TRUNC: this is a setting of the kernel.
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		_, err = fmt.Fprintln(f, want)
		if closeErr := f.Close(); err == nil {
			err = closeErr
		}
	}
	if err != nil {
		return have, false, err
	}
	if have, err = read(); err == nil && have < want {
		err = fmt.Errorf("%s is %d although %d was written", path, have, want)
	}
	return have, err == nil, err
}
