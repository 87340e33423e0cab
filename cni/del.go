package cni

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

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
		// An unreadable record cannot be acted on; keeping the pod from being deleted helps nobody.
		a, ok = attachment{Container: args.ContainerID, Interface: args.IfName, NetNS: args.Netns}, true
	}
	if !ok {
		return nil
	}
	if args.Netns != "" {
		a.NetNS = args.Netns
	}
	if err := a.undo(conf); err != nil {
		return fail(types.ErrIOFailure, p, err)
	}
	return nil
}

// undo removes the rules, if the namespace is still there and no other attachment has its rules in it, and then the record.
func (a attachment) undo(conf Conf) error {
	if a.NetNS != "" && !a.shared(conf) {
		err := redirect.InNetNS(a.NetNS, func() error { return conf.backend().Remove() })
		if err != nil && stillThere(a.NetNS) {
			return fmt.Errorf("remove the redirect rules: %w", err)
		}
	}
	return a.forget(conf)
}

func stillThere(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}
