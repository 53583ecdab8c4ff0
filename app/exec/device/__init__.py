"""/dev/kvm as the program sees it: descriptors, their ioctls, the run page, KVM_RUN and signals."""
