/* The protocol that app/explore searches, as a hand-made model for SPIN: one transaction (KICK, DELETE m1, DELETE
   m2, CREATE, RESUME), guests that spin, halt, do device I/O or touch either page, in any order, for ever. Same
   question as `kickstand explore --variant sticky --behaviour well --property missing_slot`; -DCARELESS is the
   userspace that calls KVM_RUN again at once, -DCLEAR is clear_on_exit, -DN=3 the number of vCPUs. */
#ifdef CLEAR
#define TAKE(i) req[i] = 0
#else
#define TAKE(i) skip
#endif
#ifndef N
#define N 2
#endif
bit req[N], mode[N], ipi[N], blocked[N], wake[N];
bit slot1 = 1, slot2 = 1, writer, wwait, paused;
byte readers;

proctype vcpu(byte i) {
	bit halted, leave, slot;
again:	atomic { (!writer && !wwait) -> readers++ }
round:	if
	:: halted ->
sleep:		blocked[i] = 1;
		if
		:: req[i] -> skip
		:: else -> atomic { wake[i] -> wake[i] = 0 }; goto sleep
		fi;
		atomic { blocked[i] = 0; wake[i] = 0 }
	:: else ->
		if
		:: atomic { req[i] -> TAKE(i) }; goto out
		:: else -> mode[i] = 1
		fi;
		if
		:: req[i] -> goto exit
		:: else -> skip
		fi;
guest:		if
		:: ipi[i] -> goto exit
		:: else ->
			if
			:: goto guest
			:: halted = 1; goto exit
			:: leave = 1; goto exit
			:: slot = slot1; assert(slot); goto guest
			:: slot = slot2; assert(slot); goto guest
			fi
		fi;
exit:		mode[i] = 0;
		ipi[i] = 0
	fi;
	if
	:: atomic { req[i] -> TAKE(i) }; leave = 0; goto out
	:: else -> skip
	fi;
	if
	:: leave -> leave = 0; readers--; goto again
	:: else -> goto round
	fi;
out:	readers--;
#ifndef CARELESS
	(!paused);
#endif
	goto again
}

proctype vmm() {
	byte k;
	paused = 1;
	for (k : 0 .. N - 1) {
		req[k] = 1;
		if
		:: blocked[k] -> wake[k] = 1
		:: else ->
			if
			:: mode[k] -> ipi[k] = 1
			:: else -> skip
			fi
		fi
	}
	for (k : 0 .. N - 1) { (!ipi[k]) }
	wwait = 1;
	atomic { (readers == 0 && !writer) -> writer = 1; wwait = 0 }
	writer = 0;
	slot1 = 0;
	slot2 = 0;
	atomic { slot1 = 1; slot2 = 1 }
	for (k : 0 .. N - 1) { req[k] = 0 }
	paused = 0
}

init {
	byte k;
	atomic {
		for (k : 0 .. N - 1) { run vcpu(k) }
		run vmm()
	}
}
