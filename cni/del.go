package cni

import (
	"fmt"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/weft-mesh/weft/redirect"
)

// Del undoes ADD. It succeeds when there is nothing to undo, when the namespace is gone, and when it is called again (CNI spec 1.1
// section 4, DEL).
func Del(args *skel.CmdArgs) error {
	conf, err := ParseConf(args.StdinData)
	if err != nil {
		return err
	}
	p := parsePod(args.Args)
	a, ok, err := load(conf, args.ContainerID, args.IfName)
	if err != nil {
		// An unreadable record cannot be acted on, but keeping the pod from being deleted helps nobody.
		a, ok = attachment{Container: args.ContainerID, Interface: args.IfName}, true
	}
	if !ok {
		return nil
	}
	if err := a.undo(conf); err != nil {
		return fail(types.ErrIOFailure, p, err)
	}
	return nil
}

// undo removes the rules, if the namespace is still there and no other attachment has its rules in it, and then the record.
func (a attachment) undo(conf Conf) error {
	if a.stillThere() && !a.shared(conf) {
		err := redirect.InNetNS(a.NetNS, func() error { return conf.backend().Remove() })
		if err != nil && a.stillThere() {
			return fmt.Errorf("remove the redirect rules: %w", err)
		}
	}
	return a.forget(conf)
}

// stillThere says whether the namespace of the ADD exists. It must be the same one and not only the same path: taking the rules of a stranger away
// would let its traffic around the proxy.
func (a attachment) stillThere() bool { return a.Inode != 0 && inode(a.NetNS) == a.Inode }

// inode identifies a namespace among those that exist; 0 is none.
func inode(path string) uint64 {
	var s unix.Stat_t
	if path == "" || unix.Stat(path, &s) != nil {
		return 0
	}
	return s.Ino
}
