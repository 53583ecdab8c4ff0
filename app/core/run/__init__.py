"""What passes between KVM_RUN and userspace: exits, the run page, what observers see."""
