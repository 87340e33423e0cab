package cni

import (
	"errors"
	"slices"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
)

// GC forgets, and undoes where still possible, every attachment of this network that the runtime does not know any more (CNI spec 1.1 section 4, GC).
func GC(args *skel.CmdArgs) error {
	conf, err := ParseConf(args.StdinData)
	if err != nil {
		return err
	}
	all, err := list(conf, conf.Name)
	if err != nil {
		return fail(types.ErrIOFailure, pod{}, err)
	}
	var errs []error
	for _, a := range all {
		if !slices.Contains(conf.ValidAttachments, types.GCAttachment{ContainerID: a.Container, IfName: a.Interface}) {
			errs = append(errs, a.undo(conf))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fail(types.ErrIOFailure, pod{}, err)
	}
	return nil
}
