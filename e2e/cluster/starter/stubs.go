package main

func (d Dir) nodeDown() error           { return nil }
func (d Dir) containerdSocket() string  { return d.short("containerd.sock") }
func (d Dir) up(bool) error             { return nil }
func (d Dir) loadImages([]string) error { return nil }
func (d Dir) down() error               { return inTurn(d.controlPlaneDown, d.servicesDown, d.tidy) }
