package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// attachment is what is remembered of an ADD that redirected a pod, one file each:
// STATEDIR/NETWORK/CONTAINER:INTERFACE. CHECK compares with its Spec, DEL and GC undo it. Pods that were let
// pass leave no file. Neither a container ID nor an interface name contains ":" or "/" (skel checks both).
type attachment struct {
	Container string `json:"container"`
	Interface string `json:"interface"`
	NetNS     string `json:"netns"`
	Inode     uint64 `json:"inode"` // of the namespace: a path may come to mean another one (/proc/PID/ns/net)
	Pod       string `json:"pod"`
	Spec      string `json:"spec"` // redirect.Spec, encoded
}

func (a attachment) path(conf Conf) string {
	return filepath.Join(conf.StateDir, conf.Name, a.Container+":"+a.Interface)
}

// save writes the record so that a reader sees all of it or nothing.
func (a attachment) save(conf Conf) error {
	b, err := json.Marshal(a)
	if err != nil {
		return err
	}
	path := a.path(conf)
	// "," cannot be part of a record's name, so an unfinished file is never read as one.
	unfinished := fmt.Sprintf("%s,%d", path, os.Getpid())
	write := func() error { return os.WriteFile(unfinished, b, 0o600) }
	if err = write(); errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(filepath.Dir(path), 0o700); err == nil {
			err = write()
		}
	}
	if err == nil {
		err = os.Rename(unfinished, path)
	}
	if err != nil {
		return fmt.Errorf("remember the attachment for CHECK and DEL (stateDir of the network configuration): %w", err)
	}
	return nil
}

func (a attachment) forget(conf Conf) error {
	if err := os.Remove(a.path(conf)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// load reads one record; ok is false when there is none.
func load(conf Conf, container, iface string) (a attachment, ok bool, err error) {
	path := attachment{Container: container, Interface: iface}.path(conf)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return a, false, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &a)
	}
	if err != nil {
		return a, false, fmt.Errorf("read %s: %w", path, err)
	}
	a.Container, a.Interface = container, iface
	return a, true, nil
}

// list reads all records of a network. A record that cannot be read is listed with its name only, so that GC can remove it.
func list(conf Conf, network string) ([]attachment, error) {
	entries, err := os.ReadDir(filepath.Join(conf.StateDir, network))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var out []attachment
	for _, e := range entries {
		container, iface, ok := strings.Cut(e.Name(), ":")
		if !ok || strings.Contains(iface, ",") {
			continue
		}
		conf.Name = network
		a, ok, err := load(conf, container, iface)
		if err != nil {
			a, ok = attachment{Container: container, Interface: iface}, true
		}
		if ok {
			out = append(out, a)
		}
	}
	return out, nil
}

// shared says whether another attachment, of whatever network, has its rules in the same namespace: there is one set of rules a namespace.
func (a attachment) shared(conf Conf) bool {
	networks, err := os.ReadDir(conf.StateDir)
	if err != nil {
		return false
	}
	for _, n := range networks {
		others, err := list(conf, n.Name())
		if err != nil {
			continue
		}
		for _, o := range others {
			if o.Inode == a.Inode && !(n.Name() == conf.Name && o.Container == a.Container && o.Interface == a.Interface) {
				return true
			}
		}
	}
	return false
}
